"""The pool: invocations, each answered once, on the workers of any engine, in live or in virtual time."""
