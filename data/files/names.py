"""What the name of a file tells: its format, its BIDS entities, and whether it is a scan, a lesion mask or neither."""

import re
from pathlib import Path

EXTENSIONS = (".nii.gz", ".nii", ".npy")  # .nii.gz first: it ends in no other
# The keys of BIDS that name files of MRI and their derivatives, and our own `slice` and `augmented`.
ENTITY = re.compile(
    r"(sub|ses|sample|task|acq|ce|rec|dir|run|mod|echo|flip|inv|mt|part|proc|hemi|space|split|recording|chunk|atlas|"
    r"res|den|label|desc|slice|augmented)-(.+)"
)


def extension_of(path: Path | str) -> str | None:
    """``.npy``, ``.nii`` or ``.nii.gz``; None for a file that is no volume."""
    return next((e for e in EXTENSIONS if str(path).lower().endswith(e)), None)


def stem_of(path: Path | str) -> str:
    """The file's name without its volume extension (``Path.stem`` would leave the .nii of .nii.gz)."""
    name = Path(path).name
    return name[: -len(extension_of(name) or "")] or name


def brain_name(scan: Path | str) -> str:
    """What we call the brain mask of a scan."""
    return f"{stem_of(scan)}_desc-{BRAIN}_{MASK}{extension_of(scan)}"


def result_name(scan: Path | str, kind: str) -> str:
    """What we call a result on the grid of a scan; `kind` is one of `RESULTS`."""
    return f"{stem_of(scan)}_{kind}{extension_of(scan)}"


def bids_entity(path: Path | str, entity: str) -> str | None:
    """The value of an entity of a BIDS file name: ``bids_entity('sub-01_ses-2_T1w.npy', 'ses')`` is '2'."""
    return entities_of(path).get(entity)


def entities_of(path: Path | str) -> dict[str, str]:
    return {match[1]: match[2] for part in stem_of(path).split("_") if (match := ENTITY.fullmatch(part))}


def _without_entities(path: Path | str) -> str:
    return "_".join(part for part in stem_of(path).split("_") if not ENTITY.fullmatch(part))


SCAN, MASK = "scan", "mask"
LESION, BRAIN = "lesion", "brain"  # what a mask is of
BRAIN_MASK = f"{BRAIN} {MASK}"
SEGMENTATION = "tissue segmentation"
# What a test leaves on the grid of a scan, by what it puts behind the scan's name.
RESULTS = {
    "prediction": "prediction of an earlier run",
    "probability": "probability map",
    "uncertainty": "uncertainty map",
    "gradcam": "Grad-CAM map",
}
PREDICTION_SUFFIX = "_prediction"
WORD = re.compile(r"[^\W_]+")
# Whole words that name a role. BIDS calls them suffixes; the other spellings are those of common tools.
CONTRASTS = {  # by the spellings of each
    "t1w": r"t1(w|c|ce|gd)?|mprage|mp2rage|unit1",
    "t2w": r"t2w?",
    "flair": r"flair",
    "dwi": r"dwi|trace",
    "adc": r"adc",
    "pdw": r"pdw",
    "swi": r"swi",
    "t2star": r"t2starw?",
    "t1map": r"t1map",
    "t2map": r"t2map",
    "bold": r"bold|boldref|sbref|epi",
    "asl": r"asl",
    "cbf": r"cbf",
    "mra": r"mra|angio",
    "ct": r"ct",
    "pet": r"pet",
    "fieldmap": r"fieldmap",
    "phasediff": r"phasediff",
    "magnitude": r"magnitude\d?",
}
APART = {"t1w", "flair", "dwi", "adc"}  # no two of them are one scan
CONTRAST = re.compile("|".join(CONTRASTS.values()), re.IGNORECASE)
MASK_WORD = re.compile(r"(.*?)(mask|msk)s?\d*", re.IGNORECASE)  # T1lesionmask, mask01
ROLES = {
    CONTRAST: SCAN,
    re.compile(r".*lesions?\d*|(roi|seg|segmentation|label)s?\d*", re.IGNORECASE): MASK,
    re.compile(r"dseg|aseg|aparc", re.IGNORECASE): SEGMENTATION,
    re.compile(r"probseg", re.IGNORECASE): "probability map",
    re.compile(r"xfm|warp", re.IGNORECASE): "transformation",
}
# Words that say what a mask is of, or parts of them (brainmask, T1lesion).
LESION_WORD = re.compile(r"lesion|infarct|stroke", re.IGNORECASE)
BRAIN_WORD = re.compile(r"brain|skull|strip|^(head|bet|hdbet)$", re.IGNORECASE)
TISSUE_WORD = re.compile(
    r"^(gm|wm|csf|wmh)$|matter|ventric|cortex|cortical|cerebell|tissue|aseg|aparc|ribbon|vessel|hemisphere|thalam|"
    r"hippocamp|amygdal|putamen|caudat|pallid|striat",
    re.IGNORECASE,
)
# Words of scans and masks that say nothing of the subject; their number may (mask01 is of img01).
ROLE_WORD = re.compile(r"^(.*mask|.*msk|.*lesion|roi|seg|segmentation|label|scan|image|img)s?(\d*)$", re.IGNORECASE)


def role_of(path: Path | str) -> str | None:
    """What a file is by its name: a scan, a mask, something else that has a name ("brain mask"), or None for unknown.

    A mask is one of lesions or of what its name does not say.
    """
    _, _, last = stem_of(path).rpartition("_")
    if last in RESULTS and last != stem_of(path):
        return RESULTS[last]
    words, entities = WORD.findall(_without_entities(path)), entities_of(path)
    roles = [None, *(role for word in words for pattern, role in ROLES.items() if pattern.fullmatch(word))]
    # What a mask is of, by its label, by its description and by the last of its words that says so. L is BIDS's label
    # of lesions; any other names what the mask is of.
    label, description = entities.get("label", ""), entities.get("desc", "")
    by_label = LESION if label.upper() == "L" else _structure_of(label) or label
    by_word = next(filter(None, map(_structure_of, reversed(words))), None)
    structures = [structure for structure in (by_label, _structure_of(description), by_word) if structure]
    is_mask = any(MASK_WORD.fullmatch(word) for word in words)
    if not (is_mask or roles[-1] == MASK or (roles[-1] == SEGMENTATION and LESION in structures)):
        return roles[-1]
    return next((f"{structure} mask" for structure in structures if structure != LESION), MASK)


def _structure_of(word: str) -> str | None:
    if match := MASK_WORD.fullmatch(word):
        word = match[1]
    if LESION_WORD.search(word):
        return LESION
    return BRAIN if BRAIN_WORD.search(word) else word if TISSUE_WORD.search(word) else None


def contrast_of(path: Path | str) -> str | None:
    """The contrast of a scan, as its name spells it; of several the last one."""
    return next(reversed(_contrasts(path)), None)


def _contrasts(path: Path | str) -> list[str]:
    return [word for word in WORD.findall(_without_entities(path)) if CONTRAST.fullmatch(word)]


def only_contrast(path: Path | str) -> str | None:
    """Which of `CONTRASTS` a scan is of by its name; None where that says none or, as T1w_in_DWI, several.

    Words as in T2_FLAIR and epi_dwi say one together.
    """
    several = len({standard_contrast(word) for word in _contrasts(path)} & APART) > 1
    return None if several else standard_contrast(contrast_of(path))


def standard_contrast(spelled: str | None) -> str | None:
    """Which of `CONTRASTS` a spelling is of."""
    fitting = (name for name, spellings in CONTRASTS.items() if re.fullmatch(spellings, spelled or "", re.IGNORECASE))
    return next(fitting, None)


def subject_of(path: Path | str) -> str:
    """The entity ``sub-`` or, without it, the name less entities and roles: 'p3' of p3_T1 and of p3_lesion_mask.

    Empty for a name that has nothing else, such as ``T1.nii.gz``.
    """
    if subject := bids_entity(path, "sub"):
        return subject
    rest = WORD.sub(
        lambda word: "" if CONTRAST.fullmatch(word[0]) else ROLE_WORD.sub(r"\2", word[0]), _without_entities(path)
    )
    return re.sub(r"([\W_])[\W_]+", r"\1", rest).strip(" _-.")
