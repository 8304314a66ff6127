// Package labels is how devices are told apart by what people write on them:
// labels, the selectors that pick by labels, and the scopes that selectors
// make. One grammar serves everywhere: filters of lists, bulk changes, grants.
//
// The package imports the standard library only.
package labels
