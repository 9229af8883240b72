// Package lb keeps a balancer in front of a cluster.
//
//	  any member         every member
//	      │ who is there     │ do you take mail?
//	      ▼                  ▼
//	┌──────────── Watcher ─────────────┐
//	│ follow    one member, or another │
//	│ Liveness  debounce: who is in    │
//	│ Render    Cluster × Layout → text│   pure functions
//	│ Installer check, rename, reload  │
//	└───────────────┬──────────────────┘
//	                ▼
//	    nginx, HAProxy: its file
//
// Rendering (nginx, HAProxy, keepalived, DNS) knows only the values Cluster and
// Layout. Nothing that comes from a cluster enters a file unread: names and
// addresses are parsed first, and what does not parse is left out and told.
//
// What may not happen: a balancer without any node, a file that the balancer
// refuses, a reload for nothing, and a balancer that stops following since one
// node died. When nothing is known, everything stays as it was.
package lb
