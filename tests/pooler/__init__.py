"""The pool behind a real PgBouncer."""
