"""Sentinel ids, special tokens and timings that LLaVA's checkpoints, prompts and servers agree on."""

IGNORE_INDEX = -100
"""Label of a position that is not supervised (PyTorch's cross-entropy skips it)."""

IMAGE_TOKEN_INDEX = -200
"""Stands in the prompt's ids where an image's visual tokens are spliced in; no vocabulary holds it."""

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"

IMAGE_PLACEHOLDER = "<image-placeholder>"
"""What a user may write in a query where the image belongs."""

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
"""What LLaVA's benchmarks append to a question, and its training data too."""

CONTROLLER_HEART_BEAT_EXPIRATION = 30
"""Seconds after which a controller forgets a silent worker."""

WORKER_HEART_BEAT_INTERVAL = 15
"""Seconds between two signs of life of a worker."""

LOGDIR = "."
