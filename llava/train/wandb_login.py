"""Whether Weights & Biases knows who reports to it: it would ask, or fail, once the model is loaded."""

from llava.errors import UserError


def check_wandb_login() -> None:
    """Make sure that wandb can report without asking anybody.

    Raises:
        UserError: If it has no key for its server.
    """
    import wandb

    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    try:
        is_logged_in = wandb.login(prompt=False, verify=False)
    except TypeError:  # an older one, which can only ask
        return
    if not is_logged_in:
        raise UserError(
            "--report_to wandb has no key: run wandb login, set WANDB_API_KEY, or keep the curves here with "
            "WANDB_MODE=offline"
        )
