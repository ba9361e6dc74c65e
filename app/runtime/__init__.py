"""Compiled artifacts at work: the loader, the checked boundary of a call, and the model a user calls."""
