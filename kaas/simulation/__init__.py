"""The pool in virtual time."""
