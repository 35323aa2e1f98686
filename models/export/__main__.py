"""Export both stages as ONNX into a folder that ``python -m runner`` segments with, without PyTorch."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from utils import cli
from utils.errors import UserError
from utils.files import require_writable
from utils.settings import option
from utils.validators import pathname


@dataclass(frozen=True)
class Settings:
    """Model."""

    rpn_ckpt_path: str = option(pathname, "RPN checkpoint", required=True)
    ckpt_path: str = option(pathname, "StrokeFormer checkpoint", required=True)
    out_dir: str = option(pathname, "folder of the exported model", required=True)
    fp16: bool = option(None, "store weights in half precision, in half of the space", False)


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    for name in ("rpn_ckpt_path", "ckpt_path"):  # first: a wrong path is refused before the heavy libraries load
        if not Path(getattr(settings, name)).is_file():
            raise UserError(f"--{name} {getattr(settings, name)} does not exist; give the path of a .ckpt file")
    if missing := [package for package in ("torch", "onnx", "onnxscript") if find_spec(package) is None]:
        raise UserError(f"{missing[0]} is not installed; pip install -r requirements.txt")
    require_writable(settings.out_dir, "--out_dir")

    from models.export.export import export

    folder = Path(settings.out_dir)
    export(settings.rpn_ckpt_path, settings.ckpt_path, folder, settings.fp16)
    megabytes = sum(path.stat().st_size for path in folder.glob("*.onnx")) / 1e6
    print(f"The model is in {folder} ({megabytes:.1f} MB); complete its card before you hand it on")


if __name__ == "__main__":
    cli.run(main, parse_args)
