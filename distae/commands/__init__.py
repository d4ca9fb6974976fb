"""One file per command; `session` is the set-up that they share."""
