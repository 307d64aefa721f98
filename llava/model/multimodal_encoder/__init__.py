"""The vision tower and the token reducers."""
