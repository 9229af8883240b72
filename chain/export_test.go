package chain

// For the tests of the public face.
var ReadContainer = readAll

const OldestProtocol, NewestProtocol = oldestProtocol, newestProtocol
