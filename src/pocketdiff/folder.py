"""The folder of a run: the only place that knows the names of its files."""

from pathlib import Path

_MODEL = "model.safetensors"


class RunFolder:
    """Paths of a run's files. Building one touches nothing on the disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.model = self.path / _MODEL
        self.pictures = self.path / "pictures"
        self.checkpoints = self.path / "checkpoints"
        self.lock = self.path / ".lock"
        self.scores_plot = self.pictures / "scores.png"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    def is_run(self) -> bool:
        """Whether the folder holds a run or a model file."""
        return self.config.exists() or self.model.exists()

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}.safetensors"

    @staticmethod
    def has_its_name(checkpoint: Path, step: int) -> bool:
        """Whether a checkpoint has the name of its step, or a name without a step, as a copy may have."""
        return not checkpoint.match("step-*.safetensors") or checkpoint.name == RunFolder("").checkpoint(step).name

    def saved_checkpoints(self) -> list[Path]:
        """All checkpoints, the newest first."""
        return sorted(self.checkpoints.glob("step-*.safetensors"), reverse=True)

    def image(self, epoch: int, suffix: str) -> Path:
        """The image grid of an epoch (0 is the first); the suffix names the view, as in ``_w0.5``."""
        return self.pictures / f"image_ep{epoch}{suffix}.png"

    def gif(self, epoch: int, suffix: str) -> Path:
        """The animation of an epoch."""
        return self.pictures / f"gif_ep{epoch}{suffix}.gif"

    def image_epochs(self, suffix: str) -> dict[int, Path]:
        """The image grids of a view, by epoch."""
        found = {}
        for path in sorted(self.pictures.glob(f"image_ep*{suffix}.png")):
            epoch = path.name.removeprefix("image_ep").removesuffix(f"{suffix}.png")
            if epoch.isdecimal():
                found[int(epoch)] = path
        return found


def short_name(path: Path) -> str:
    """The name of a run or a model file: the folder's name, or the file's name without its ending."""
    return (path.parent if path.name == _MODEL else path).resolve().name.removesuffix(".safetensors")
