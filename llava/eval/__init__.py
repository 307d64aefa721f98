"""Asking a loaded model questions from files and command lines, and scoring the answers."""
