"""The errors that a user of Penchant can cause and cure."""


class PenchantError(Exception):
    """Something the user can put right. The message is one sentence: what, where, what to do."""


class InputError(PenchantError, ValueError):
    """The data or an argument is not usable as given."""


class RecipeMismatch(PenchantError, ValueError):
    """Latents made with one recipe met a head or a store made with another."""
