"""Lists of classes as text."""

from pocketdiff.errors import RequestError


def parse_labels(text: str, classes: tuple[str, ...]) -> list[int]:
    """Class indices from a list of names, indices and ranges, such as ``0-9``, ``3,1,4`` or ``cat,dog``.

    Raises:
        RequestError: If a part is not a class.
    """
    labels: list[int] = []
    for part in text.split(","):
        if (label := _find(part, classes)) is not None:
            labels.append(label)
            continue
        ends = [
            (_find(part[:at], classes), _find(part[at + 1 :], classes)) for at, sign in enumerate(part) if sign == "-"
        ]
        spans = [(first, last) for first, last in ends if first is not None and last is not None and first <= last]
        if not spans:
            known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise RequestError(f"there is no class {part.strip()!r}; the classes are {known}")
        labels.extend(range(spans[0][0], spans[0][1] + 1))
    return labels


def _find(word: str, classes: tuple[str, ...]) -> int | None:
    """A class by its name, or by its index where no name is a number, which could mean either."""
    word = word.strip()
    if word in classes:
        return classes.index(word)
    if any(name.isdecimal() for name in classes) or not (word.isascii() and word.isdecimal()):
        return None
    return int(word) if int(word) < len(classes) else None
