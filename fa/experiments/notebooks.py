"""Find the notebooks of figures and theory, and execute them with papermill."""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from fa.experiments import match_names
from fa.experiments.paths import project_root
from fa.utils.files import write_atomically
from fa.utils.validation import check, check_one_of

LIMIT = 500_000
"""Size in bytes above which the pictures of an executed copy are reduced to 256 colors."""


def find(names: Sequence[str] = ()) -> list[Path]:
    """Return notebooks by name.

    Args:
        names: Whole names (fig02_mean_tolerance), short ones (fig02) or families (fig, extra, supp, theory,
            augmentation); default: all figures.

    Raises:
        ValueError: A name without a notebook.
    """
    paths = {path.stem: path for path in sorted((project_root() / "notebooks").glob("*.ipynb"))}
    return [paths[stem] for stem in match_names(names or ("fig",), list(paths))]


class Parameter(NamedTuple):
    """A parameter of a notebook.

    Attributes:
        type: Name of its type.
        help: Its meaning.
    """

    type: str
    help: str


def parameters_of(path: Path) -> dict[str, Parameter]:
    """Read the parameters that a notebook declares in its cell with the tag "parameters".

    Args:
        path: The notebook (.ipynb).

    Returns:
        The parameters by name, in the notebook's order.
    """
    import papermill

    declared = papermill.inspect_notebook(path)
    return {name: Parameter(about["inferred_type_name"], about["help"]) for name, about in declared.items()}


def heading(path: Path) -> str:
    """Read a notebook's title: the first line of its first cell.

    Args:
        path: The notebook (.ipynb).

    Returns:
        The title without leading "#".
    """
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
    return "".join(first).partition("\n")[0].lstrip("# ")


def record_parameters(path: Path, command: str, parameters: Mapping[str, Any]) -> None:
    """Add the parameters of a drawing, and the command with them, to its provenance.

    Args:
        path: NAME.json of the figure or notebook; a notebook without provenance has none.
        command: Command that draws it again.
        parameters: Values by name.
    """
    if path.is_file():
        about = json.loads(path.read_text(encoding="utf-8")) | {"command": command, "parameters": dict(parameters)}
        write_atomically(path, json.dumps(about, indent=2) + "\n")


def execute(path: Path, target: Path, **parameters: Any) -> Path:
    """Execute a notebook, and print the output of its cells.

    Args:
        path: The notebook.
        target: Folder; the executed copy is written into its subfolder "notebooks". The copy has neither times nor
            paths of this machine below the checkout.
        **parameters: Values of the notebook's parameters. Those that it does not have are ignored, except "finished",
            "rules" and "attack". The parameter "interactive" is False by default.

    Returns:
        The path of the executed copy.

    Raises:
        ValueError: A cell failed, the copy cannot be written, or "finished", "rules" or "attack" do not apply.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    executed = target / "notebooks" / path.name
    parameters = {"interactive": False} | parameters
    accepted = papermill.inspect_notebook(_literal(path))
    for name in ("finished", "rules", "attack"):
        value = parameters.get(name)
        requirement = f"omitted for {path.stem}, whose notebook has no such parameter"
        check(name, value, not value or name in accepted, requirement)
    executed.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            _literal(path),
            _literal(executed),
            parameters={name: value for name, value in parameters.items() if name in accepted},
            cwd=path.parent,
            kernel_name="python3",
            kernel_manager_class=_kernel_of_this_interpreter(),
            progress_bar=False,
            stdout_file=sys.stdout,
            extra_arguments=["--log-level=CRITICAL"],  # Only the output of the cells, without messages of the kernel.
        )
        tidy(executed)
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{path.name} failed with {error.ename}: {error.evalue} (see {executed})") from error
    except DeadKernelError as error:
        raise ValueError(f"{path.name} ended early: its kernel was killed, perhaps for want of memory") from error
    except OSError as error:
        raise ValueError(f"{path.name} could not be executed into {executed}: {error.strerror or error}") from error
    return executed


def check_parameters() -> None:
    """Check, in a notebook's kernel, that papermill has set only parameters that the notebook declares.

    `fa reproduce` checks them before it starts. Papermill itself only warns, and would run the notebook with its
    defaults.

    Raises:
        ValueError: A parameter is unknown.
    """
    from IPython import get_ipython

    shell = get_ipython()  # type: ignore[no-untyped-call,unused-ignore]
    cells = [] if shell is None else [str(cell) for cell in shell.user_ns.get("In", ())]
    for declared, injected in pairwise(cells):
        if injected.startswith(_INJECTED):
            for name in _assigned(injected):
                check_one_of("parameter", name, _assigned(declared))


_INJECTED = "# Parameters\n"  # First line of the cell that papermill adds after that of the parameters.


def _assigned(source: str) -> list[str]:
    """Return the names to which a cell assigns."""
    names = []
    for statement in ast.parse(source).body:
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def tidy(executed: Path) -> None:
    """Rewrite an executed copy so that it can be committed.

    Times of the execution are removed, paths below the checkout become relative to it, and the pictures of a copy of
    more than LIMIT bytes are reduced to 256 colors.

    Args:
        executed: The copy, as papermill wrote it.
    """
    text = executed.read_text(encoding="utf-8").replace(f"{project_root()}/", "")
    notebook = json.loads(text)
    for part in (notebook, *notebook["cells"]):
        kept = {key: value for key, value in part["metadata"].items() if key not in ("papermill", "execution")}
        part["metadata"] = {key: value for key, value in kept.items() if (key, value) != ("tags", [])}
    if len(text) > LIMIT:
        for output in (output for cell in notebook["cells"] for output in cell.get("outputs", ())):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _reduced(output["data"]["image/png"])
    write_atomically(executed, json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _reduced(encoded: str) -> str:
    """Return a PNG in base64 with 256 colors on white, or the PNG itself if that is smaller."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    opaque = Image.new("RGBA", picture.size, "white")
    opaque.alpha_composite(picture)
    file = io.BytesIO()
    colors = opaque.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colors.save(file, "PNG", optimize=True)
    return min(base64.b64encode(file.getvalue()).decode() + "\n", encoded, key=len)


def _literal(path: Path) -> str:
    """Return a path for papermill, which formats it as a template."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _kernel_of_this_interpreter() -> Any:
    """Return a kernel manager that ignores other kernels named python3, such as those first on JUPYTER_PATH."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):  # type: ignore[misc,unused-ignore]
        kernel_spec = KernelSpec(**get_kernel_dict())

    return Manager
