"""Flags from configs and from options."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, strategies as st
from pydantic import Field

from pocketdiff.cli.flags import Metavar, Positional, UsageError, apply, parse, peek
from pocketdiff.config import MethodConfig, SamplingConfig
from pocketdiff.frozen import Filled, Frozen
from pocketdiff.methods import PRESETS
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.nets import NETS
from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.samplers import SAMPLERS
from pocketdiff.schedule import DiscreteBeta, Karras, LogNormal


class Nothing(Frozen):
    """No options."""


class Base(Frozen):
    """Shared: what two verbs have in common."""

    seed: Annotated[int, Field(ge=0)] = 7
    """The first seed."""
    n: int = 0
    """Number of images."""


class Options(Base):
    """Tests the flags.

    Examples:
      pocketdiff test x
    """

    runs: Annotated[tuple[Path, ...], Positional("RUN")]
    """Folders."""
    out: Annotated[Path | None, Metavar("FOLDER")] = None
    """Where it goes."""
    mode: Annotated[str, Metavar({"a": 1, "b": 2})] = "a"
    """One of two."""
    exact: bool = False
    """Whether to be exact."""
    json_: Path | None = None
    """A file."""


def flags(*words: str, config: MethodConfig = PRESETS["quick"]) -> Any:
    return apply(config, parse("test", words, Nothing, config, "config: the defaults are the test's")[1])


def help_of(
    capsys, options: type[Frozen], config: MethodConfig | SamplingConfig | None = None, flag: str = "--help-all"
) -> str:
    with pytest.raises(SystemExit):
        parse("test", [flag], options, config, "config: the defaults are the test's")
    return str(capsys.readouterr().out)


def test_options_are_a_model_and_the_flags_of_the_config_a_dictionary() -> None:
    words = ["x", "--out", "o", "--exact", "--seed", "3", "--widths", "8", "16", "--scale", "2"]
    options, given = parse("test", words, Options, PRESETS["quick"], "config: x")
    assert options == Options(runs=(Path("x"),), out=Path("o"), exact=True, seed=3)
    assert given == {"net.widths": ["8", "16"], "sampling.scale": "2"}
    many, _ = parse("test", ["a", "b", "--json", "j", "--out", "none"], Options)
    assert (many.runs, many.json_, many.out, many.seed) == ((Path("a"), Path("b")), Path("j"), Path("none"), 7)


def test_the_name_of_an_option_hides_a_field_of_the_config() -> None:
    options, given = parse("test", ["x", "--seed", "3"], Options, PRESETS["quick"], "config: x")
    assert (options.seed, given) == (3, {})


def test_the_help_of_options_has_a_group_for_each_base_class(capsys) -> None:
    text = help_of(capsys, Options)
    assert text.startswith("usage: pocketdiff test RUN [RUN ...] [flags]\n\nTests the flags.\n")
    assert text.endswith("\nexamples:\n  pocketdiff test x\n")
    own, shared = " ".join(text.split()).split(" shared: what two verbs have in common ")
    for line in (
        "RUN Folders",
        "--out FOLDER Where it goes",
        "--mode {a,b} One of two (default: a)",
        "--exact Whether",
    ):
        assert line in own
    assert "--seed INT The first seed (default: 7) --n INT Number of images (default: 0)" in shared


def test_the_help_shows_each_default_once(capsys) -> None:
    text = " ".join(help_of(capsys, Nothing, PRESETS["quick"]).split())
    assert "--pictures-every INT Epochs between two image grids (default: at most five" in text
    assert "the end of the run always has one --" in text
    assert "--seed INT Decides the initial weights, the order of the images and all noise (default: 0)" in text
    assert "--mean, --schedule.mean FLOAT [lognormal] Mean of log sigma (default: 0)" in text
    assert "--data SOURCE Data set" in text
    assert "--interval, --sampling.interval LOW:HIGH Guidance only" in text
    assert "--guide, --sampling.guide RUN_OR_FILE Autoguidance" in text
    assert "[karras] Larger: shorter steps at low noise; 1: even steps in sigma --" in text, "another kind's"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: RUN"),
        ("x --seed -1", "--seed -1: input should be greater than or equal to 0"),
        ("x --seed many", "--seed many: input should be a valid integer"),
        ("x --json", "argument --json: expected one argument"),
        ("x --oui y", "there is no '--oui'; did you mean --out?"),
        ("x --no-exact", "there is no '--no-exact'"),
    ],
)
def test_a_fault_of_an_option_names_it(words: str, message: str) -> None:
    with pytest.raises(UsageError) as fault:
        parse("test", words.split(), Options)
    assert str(fault.value).startswith(message)


def test_peek_finds_a_flag_among_others() -> None:
    assert peek(["--images", "5", "--preset", "gan"], "--preset") == "gan"
    assert peek(["--preset=gan"], "--preset") == "gan"
    assert peek(["--presets", "gan", "--preset"], "--preset") is None


def test_flags_reach_every_depth() -> None:
    config = flags(
        "--seed", "3", "--widths", "8", "16", "--sampling.steps", "5", "--scale", "2", "--compile", "--size", "32", "24"
    )
    assert isinstance(config, DiffusionConfig)
    assert config.net == UNetConfig(widths=(8, 16))
    assert (config.seed, config.compile, config.size) == (3, True, (32, 24))
    assert (config.sampling.steps, config.sampling.scale) == (5, 2.0)
    assert flags("--size", "32").size == (32, 32)
    assert flags("--pictures-every", "2").pictures_every == 2
    assert flags("--pictures-every", "none").pictures_every is None
    assert flags("--interval", "0.3:3").sampling.interval == (0.3, 3.0)
    assert flags("--interval", "0.3", "3").sampling.interval == (0.3, 3.0)
    assert flags("--data", "none").data == "none"


def test_a_dictionary_is_given_as_pairs(monkeypatch) -> None:
    def mine(denoise, x, sigmas, noise, *, order: str = "first", eta: float = 0.0):
        return SAMPLERS["euler"](denoise, x, sigmas, noise)

    monkeypatch.setitem(SAMPLERS, "mine", mine)
    sampling = flags("--sampler", "ancestral", "--options", "eta=0.5").sampling
    assert (sampling.sampler, sampling.options) == ("ancestral", {"eta": 0.5})
    mixed = flags("--sampler", "mine", "--options", "order=second", "eta=1")
    assert mixed.sampling.options == {"order": "second", "eta": 1.0}
    config = PRESETS["quick"].model_copy(update={"sampling": sampling})
    assert flags("--options", "none", config=config).sampling.options == {}
    for words, message in {
        "--options eta": "--sampling.options eta: 'eta' must be KEY=VALUE",
        "--options =1": "--sampling.options =1: '=1' must be KEY=VALUE",
        "--options eta=1": "--sampling.options eta=1: ",
    }.items():
        with pytest.raises(UsageError) as fault:
            flags(*words.split())
        assert str(fault.value).startswith(message)


def test_the_original_experiments_knobs_are_flags() -> None:
    config = flags("--n-feat", "16", "--timesteps", "50", "--sampling.steps", "9", config=PRESETS["ddpm"])
    assert config.net == ContextUnetConfig(n_feat=16)
    assert config.schedule == DiscreteBeta(timesteps=50, beta_start=1e-4, beta_end=0.02, zeroth=True)
    assert len(config.sampling.grid(config.schedule)) == 10
    whole = flags("--timesteps", "50", config=PRESETS["ddpm"])
    assert len(whole.sampling.grid(whole.schedule)) == 51  # The sampler follows the training schedule.


@pytest.mark.parametrize(
    ("preset", "words", "length"),
    [
        ("ddpm", "", (None, 20)),
        ("ddpm", "--epochs 2", (None, 2)),
        ("ddpm", "--images 500", (500, None)),
        ("ddpm", "--images none", (None, 20)),
        ("quick", "--epochs 3", (None, 3)),
        ("quick", "--images 500", (500, None)),
        ("quick", "--epochs none", (22_000, None)),
    ],
)
def test_one_kind_of_length_replaces_the_other(preset: str, words: str, length: tuple[int | None, int | None]) -> None:
    config = flags(*words.split(), config=PRESETS[preset])
    assert (config.images, config.epochs) == length


def test_a_schedule_of_its_own_can_be_given_to_sampling_and_removed() -> None:
    own = flags(
        "--sampling.schedule.kind", "karras", "--sampling.schedule.rho", "5", "--steps", "5", config=PRESETS["ddpm"]
    )
    assert own.sampling.schedule == Karras(rho=5)
    assert flags("--sampling.schedule.kind", "none", "--schedule.kind", "flow").sampling.schedule is None
    with pytest.raises(
        UsageError, match=r"^--sampling.schedule.rho 5: needs --sampling.schedule.kind karras; here it is none$"
    ):
        flags("--sampling.schedule.rho", "5", config=PRESETS["ddpm"])


def test_a_new_kind_begins_with_its_own_defaults() -> None:
    assert flags("--schedule.kind", "karras").schedule == Karras()
    assert flags("--schedule.rho", "5", "--schedule.kind", "karras").schedule == Karras(rho=5)
    kept = LogNormal(mean=-1, std=0.5)
    config = PRESETS["quick"].model_copy(update={"schedule": kept})
    words = ("--schedule.kind", "lognormal", "--schedule.mean", "2")
    assert flags(*words, config=config).schedule == LogNormal(mean=2, std=0.5)


COMMON = ["data", "size", "augment", "images", "epochs", "batch", "seed", "evaluate-every"]


@pytest.mark.parametrize(
    ("preset", "more", "default"),
    [
        ("quick", "init-from widths sampler steps scale w", "--batch INT Images in an optimizer step (default: 32)"),
        ("ddpm", "init-from n-feat sampler steps scale w", "--epochs INT Length of the run in epochs, instead of"),
        ("consistency", "teacher widths sampler steps scale w", "--teacher RUN_OR_FILE The teacher"),
        ("gan", "generator discriminator", "--generator INT [INT ...] Widths"),
        ("gan-conditional", "widths", "--widths INT [INT ...] Channels"),
    ],
)
def test_help_shows_the_common_flags_and_help_all_every_flag(preset: str, more: str, default: str, capsys) -> None:
    brief, whole = (help_of(capsys, Base, PRESETS[preset], flag) for flag in ("--help", "--help-all"))
    shown, every = (re.findall(r"^  (?:--[\w.-]+, )*--([\w.-]+)", text, re.MULTILINE) for text in (brief, whole))
    assert sorted(shown) == sorted(["n", *COMMON, *more.split()])
    assert brief.endswith(f"\npocketdiff test --help-all lists all {len(every)} flags\n")
    assert len(every) > 1.7 * len(shown)
    assert default in " ".join(brief.split())
    assert "[unet" not in brief, "the preset has one kind of network"
    assert help_of(capsys, Options, None, "--help") == help_of(capsys, Options, None), "without a config there is one"


def test_a_second_flag_gives_the_same_value_in_another_unit(capsys) -> None:
    assert flags("--w", "0.5") == flags("--scale", "1.5") == flags("--sampling.w=0.5")
    text = " ".join(help_of(capsys, Nothing, PRESETS["quick"]).split())
    assert (
        "--w, --sampling.w FLOAT Guidance strength, instead of the scale: w = scale - 1; 0 = off (default: 1.4)" in text
    )
    sampling = SamplingConfig()
    given = parse("test", ["--w", "-0.5"], Nothing, sampling, "sampling: x")[1]
    assert apply(sampling, given).scale == 0.5


@pytest.mark.parametrize(
    ("word", "preset", "meant"),
    [
        ("--lr", "quick", "--adam-lr or --muon-lr"),
        ("--lr", "gan", "--generator-lr or --discriminator-lr"),
        ("--batch_size=4", "quick", "--batch"),
        ("--CFG", "quick", "--scale"),
        ("--resolution", "gan", "--size"),
        ("-o", "gan", "--out"),
        ("--num", "gan", "--images or --n"),
        ("--ddim-steps", "gan", None),
        ("--sacle", "quick", "--scale"),
    ],
)
def test_an_unknown_flag_suggests_those_that_exist_and_mean_the_same(word: str, preset: str, meant: str | None) -> None:
    with pytest.raises(UsageError) as fault:
        parse("test", ["x", word], Options, PRESETS[preset], "config: x")
    hint = f"; did you mean {meant}?" if meant else ""
    assert str(fault.value) == f"there is no {word!r}{hint}; pocketdiff test --help-all lists the flags"


def test_names_and_kinds_registered_later_are_flags(capsys, monkeypatch) -> None:
    class Flat(UNetConfig):
        kind: Literal["flat"] = "flat"  # type: ignore[assignment]
        slope: float = 0.5
        """Its slope."""

    monkeypatch.setitem(NETS, "flat", Flat)
    monkeypatch.setitem(SAMPLERS, "mine", SAMPLERS["euler"])
    config = flags("--net.kind", "flat", "--slope", "2", "--widths", "8", "--sampler", "mine")
    assert config.net == Flat(slope=2, widths=(8,))
    assert config.sampling.sampler == "mine"
    text = " ".join(help_of(capsys, Nothing, PRESETS["quick"]).split())
    assert "--net.kind {unet,context_unet,flat}" in text
    assert "--slope, --net.slope FLOAT [flat] Its slope" in text
    assert "--widths, --net.widths INT [INT ...] [unet, flat]" in text
    assert ",mine} The rule for each step (default: dpmpp_2m)" in text


NOT_PLAIN = ("kind", "net", "schedule", "sampling")
VALUES = [
    name
    for name, field in DiffusionConfig.model_fields.items()
    if name not in NOT_PLAIN and field.annotation is not bool and not any(isinstance(m, Filled) for m in field.metadata)
]
NESTED = ["schedule.kind", "schedule.mean", "net.widths", "sampling.steps", "sampling.sampler", "sampling.options"]


@given(
    st.sampled_from([*VALUES, *NESTED, "sampling.interval", "sampling.schedule.rho"]),
    st.text(max_size=8).filter(lambda text: not text.startswith("-")),
)
def test_any_value_gives_a_config_or_a_sentence_that_names_the_flag(name: str, value: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    try:
        config = flags(flag, value)
    except UsageError as error:
        assert str(error).startswith(flag)  # noqa: PT017 (both outcomes are right)
    else:
        assert isinstance(config, DiffusionConfig)


@pytest.mark.parametrize(
    ("preset", "name"), [("quick", "parts"), ("quick", "init-sha256"), ("consistency", "teacher-sha256")]
)
def test_what_a_run_fills_in_has_no_flag(preset: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"there is no '--{name}'"):
        parse("test", [f"--{name}", "1"], Nothing, PRESETS[preset], "config: the defaults are the test's")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--imges 5", "there is no '--imges'; did you mean --images?"),
        ("--w x", "--w x: input should be a valid number"),
        ("--w -2", "--w -2 (scale -1): input should be greater than or equal to 0"),
        ("--w 1 --scale 2", "argument --scale/--sampling.scale: not allowed with argument --w/--sampling.w; "),
        ("--images 5 --epochs 5", "give the length of the run either in images or in epochs"),
        ("--images none", "--images none: give the length of the run either in images or in epochs"),
        ("--images -1", "--images -1: input should be greater than or equal to 1"),
        ("--images many", "--images many: input should be a valid integer"),
        ("--images", "argument --images: expected one argument"),
        ("--epochs 0", "--epochs 0: input should be greater than or equal to 1"),
        ("--guidance-strengths 1 1", "--guidance-strengths 1 1: two guidance_strengths are equal"),
        ("--n-feat 16", "--net.n-feat 16: needs --net.kind context_unet; here it is unet"),
        ("--net.kind none", "--net.kind none: there is no such kind; use unet, context_unet"),
        ("--net.kind context_unet --n-feat 12", "--net.n-feat 12: "),
        ("--widths 30", "--net.widths 30: widths must be multiples of 8"),
        ("--schedule.sigma-min 100", "--schedule.sigma-min 100: sigma_min (100) must be below sigma_max (80)"),
        ("--schedule.kind wavy", "--schedule.kind wavy: there is no such kind; use karras, lognormal"),
        ("--schedule.rho 3", "--schedule.rho 3: needs --schedule.kind karras; here it is lognormal"),
        ("--schedule.kind karras --schedule.rho 0.001", "--schedule.rho 0.001: "),
        ("--sampling.steps none", "--sampling.steps none: steps is none, but the karras schedule is continuous"),
        ("--sampler best", "--sampling.sampler best: there is no sampler 'best'; use euler, "),
        ("--interval 3:0.3", "--sampling.interval 3:0.3: interval 3:0.3 must be LOW:HIGH"),
        ("--guide x", "--sampling.guide x: "),
        ("--parameterization y", "--parameterization y: there is no parameterization 'y'; use eps, x0, v, flow"),
        ("--loss-weighting y", "--loss-weighting y: there is no "),
        ("--size 32 32 32", "--size 32 32 32: "),
        ("--size 8", "--size 8: input should be greater than or equal to 16"),
        ("--precision fp8", "--precision fp8: input should be 'fp32' or 'bf16'"),
        ("--teacher x", "there is no '--teacher'"),
    ],
)
def test_a_fault_of_a_config_names_its_flag(words: str, message: str) -> None:
    with pytest.raises(UsageError) as fault:
        flags(*words.split())
    assert str(fault.value).startswith(message)
