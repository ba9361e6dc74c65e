"""Records as people read them: on the terminal, in tables, on a page."""
