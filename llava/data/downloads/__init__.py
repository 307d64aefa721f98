"""From downloaded archives to the training data of LLaVA-1.5; the command is `llava.data.prepare_data`."""
