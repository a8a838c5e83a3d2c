package connect

// CallError makes an Error of what a single call of the provider with that name returned, outside of a connect.
func CallError(name string, err error) *Error {
	return (&Connector{name: name}).sessionError("", "", err)
}
