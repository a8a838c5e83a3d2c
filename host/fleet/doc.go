// Package fleet is the engine room: a configuration goes in; supervised plugins, records and sessions come out. The fronts,
// such as the command line, ask a Fleet for whatever is done to sessions and providers, and only word and show what it
// returns.
//
// It knows no flags, prints nothing and gives no advice. Its errors are *connect.Error, *ConfigError, *ChoiceError, or that
// of the context that ended.
//
// Its files are floors, and a file uses only those below it:
//
//	states.go    all sessions and their states
//	session.go   one session: connect, ping, renew and keep alive, disconnect
//	sweep.go     sweep and recover
//	check.go     is the configuration right, do the providers answer
//	fleet.go     the plugins, the records, and what is made of them
//	identity.go  the host's secret and the owner's name
//	error.go     failures
package fleet
