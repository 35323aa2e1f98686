"""Defaults of the method that the command line shows; light, so that ``--help`` answers at once."""

# Of MONAI's losses. Dice over the whole batch: a window without lesion has no Dice of its own to learn from.
LOSS_CONFIG = {"include_background": False, "softmax": True, "to_onehot_y": True, "batch": True}
