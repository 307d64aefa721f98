"""Published methods that reduce an image's tokens before the language model, each beside its paper."""
