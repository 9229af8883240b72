package main

import (
	"reflect"
	"strings"

	"chainmail/node"
)

// configKeys lists every key of the configuration, those of a list's elements
// as "connectors[].tls.mode".
func configKeys() []string {
	var keys []string
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for i := range t.NumField() {
			field := t.Field(i)
			key, ft := prefix+field.Tag.Get("yaml"), field.Type
			if ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct {
				key, ft = key+"[]", ft.Elem()
			}
			keys = append(keys, key)
			if ft.Kind() == reflect.Struct {
				walk(key+".", ft)
			}
		}
	}
	walk("", reflect.TypeFor[node.Config]())
	return keys
}

// suggestion names the known key that is nearest to a mistyped one: at the
// same place if one is near, else a key of that name somewhere else.
func suggestion(key string, known []string) string {
	plain := indexed.ReplaceAllString(key, "[]")
	dir, leaf := cutLast(plain)
	best, distance := "", len(leaf)/2+1
	for _, k := range known {
		kdir, kleaf := cutLast(k)
		d := editDistance(leaf, strings.TrimSuffix(kleaf, "[]"))
		if kdir != dir {
			d = 2*d + 1 // a key of another group must be much nearer
		}
		if d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return "remove it; packaging/chainmail.yaml lists every key"
	}
	return "did you mean " + best + "?"
}

func cutLast(key string) (dir, leaf string) {
	i := strings.LastIndexByte(key, '.')
	return key[:i+1], key[i+1:]
}

// editDistance is the Levenshtein distance of two keys.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
