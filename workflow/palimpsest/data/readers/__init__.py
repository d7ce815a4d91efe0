"""One publisher's format a file, found by name: `splits` names the splits, `read` yields one."""
