"""What a label map holds besides class numbers."""

VOID = 255
"""Target value of pixels that belong to no class: neither learnt nor scored, in any data set here."""
