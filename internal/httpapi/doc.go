// Package httpapi is the frame of the HTTP API: what every operation shares.
//
// [New] builds one handler with the operations that commandhttp, queryhttp and
// enroll register, the health and metrics endpoints, the OpenAPI document and
// a documentation page. Around them it puts, once: authentication by API
// token or session, the defence of sessions against pages of other sites,
// request ids, limits on bodies and parameters, RFC 9457 problems, security
// headers, metrics and the access log.
//
// The package also holds the representations that more than one door returns
// ([Device], [VM], [Task] and so on), so that an answer to a write looks like
// an answer to a read. They are apart from the events on purpose: an event
// never changes, a representation may grow.
//
// It knows neither commands nor projections; both sides of the house meet here
// only in JSON.
package httpapi
