"""The package's own errors. Each message is one sentence: what is wrong, where, and how to fix it."""


class PocketdiffError(Exception):
    """An error that the user can fix. The command line prints it without a traceback."""

    status = 2
    """Exit status of the command line: 2 for bad input, 1 for failed work."""


class DataError(PocketdiffError):
    """A data set that cannot be read or used."""


class PluginError(PocketdiffError):
    """A name without an implementation, or an implementation that lacks something."""


class RequestError(PocketdiffError):
    """A request that a model cannot meet."""


class SamplingError(PocketdiffError):
    """A model whose output is not an image."""

    status = 1


class TrainingError(PocketdiffError):
    """Training that cannot continue."""

    status = 1


class CheckpointError(PocketdiffError):
    """A checkpoint or a model file that cannot be used."""


class RunError(PocketdiffError):
    """A run's folder that cannot be used."""


class EvaluationError(PocketdiffError):
    """Images, or a request, that cannot be scored."""
