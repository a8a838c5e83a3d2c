package main

import "time"

// times are how long things may take. Tests shorten them.
type times struct {
	// call bounds one try of a look-up, slowCall one of a call that makes E2B work: create, connect, pause, kill.
	call, slowCall time.Duration
	// pause is the first one before a call is repeated. It doubles each time, up to longestPause.
	pause, longestPause time.Duration
	// longestAsked is the longest Retry-After that is waited for.
	longestAsked time.Duration
	// undo bounds the removal of what a failed Create made.
	undo time.Duration
	// settle is how long a sandbox is looked for that a Create may have made without an answer.
	settle time.Duration
	// rivals is how long the older of two sandboxes for one session waits for the younger one to be removed by whoever
	// made it.
	rivals time.Duration
	// transition is how long a sandbox may be between two states.
	transition time.Duration
	// start bounds the time until a process in a sandbox runs, script the run of a short one.
	start, script time.Duration
	// secondLook is how long a started server is watched for dying at once.
	secondLook time.Duration
	// patience is how long a server may not answer before anybody looks why.
	patience time.Duration
	// askServer and askControl are the least time between two looks at a server's process, and between two calls of
	// the control API, for one sandbox whose server does not answer.
	askServer, askControl time.Duration
}

var realTimes = times{
	call: 20 * time.Second, slowCall: 60 * time.Second,
	pause: 250 * time.Millisecond, longestPause: 2 * time.Second, longestAsked: 30 * time.Second,
	undo: 10 * time.Second, settle: 2 * time.Second, rivals: 4 * time.Second, transition: 30 * time.Second,
	start: 30 * time.Second, script: 10 * time.Second, secondLook: 250 * time.Millisecond,
	patience: time.Second, askServer: 2 * time.Second, askControl: 5 * time.Second,
}

// repeats is how often a call is repeated that failed in passing.
const repeats = 3
