"""Compile PyTorch models ahead of time: verified, cached by content, loaded in milliseconds, measured."""

__version__ = "0.1.0"
