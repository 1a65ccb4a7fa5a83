"""A folder of a model to a repository on the Hugging Face hub, through huggingface_hub."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from imagen_jax.convert.hub import NAME, PICKLES
from imagen_jax.storage.disk import size_text

CARD = "README.md"
# What models are made of: weights, descriptions, tokenizers, cards with their images, licences.
SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".md", ".png", ".jpg", ".jpeg", ".webp")
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
SMALL = 2**20  # bytes; what is larger and none of the above is not left out silently
# Of an earlier model, in whatever layout: they go when another one comes.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "model.json", "model_index.json")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_name(name: str) -> None:
    """ValueError where a repository cannot be called so."""
    odd = ".." in name or "--" in name or name.endswith((".", "-", ".git")) or len(name) > 96
    if odd or not NAME.fullmatch(name):
        raise ValueError(
            f"NAME is {name!r}; it must have the form 'user/model' or 'organization/model', of "
            "letters, digits, '-', '_' and '.'"
        )


def model_files(directory: Path) -> dict[str, Path]:
    """{path in the repository: file} of what is uploaded of a model's folder; hidden files and
    small ones that belong to no model are left out.

    Raises:
        ValueError: there is a pickle, which nobody should have to load, or a large file that
            belongs to no model.
    """
    found = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if any(fnmatch(file.name.lower(), pattern) for pattern in PICKLES):
            raise ValueError(f"{file} is a pickle, or may be one: move it away to upload the rest")
        known = file.suffix in SUFFIXES or any(fnmatch(file.name, each) for each in LICENCES)
        size = file.stat().st_size
        if known:
            found[name] = file
        elif size > SMALL:
            raise ValueError(
                f"{file} ({size_text(size)}) is no part of a model: move it away to upload the rest"
            )
    return found


def check_rights(name: str) -> None:
    """Asks the hub who is logged in, and whether that account may write there.

    Raises:
        PermissionError: nobody is logged in, or the account or its token may not.
        OSError: the hub cannot be reached.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    from huggingface_hub import HfApi

    with _refusals(name):
        account = HfApi().whoami()
    owner, own = name.split("/")[0], account.get("name", "")
    owners = [own, *(each.get("name", "") for each in account.get("orgs") or ())]
    if owner.lower() not in [each.lower() for each in owners]:
        raise PermissionError(
            f"{own} cannot write to {name} on the Hugging Face hub: the name must begin with "
            f"{' or '.join(f'{each}/' for each in owners)}"
        )
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise PermissionError(f"The token of {own} on the Hugging Face hub may only read: {LOG_IN}")


def upload(
    name: str,
    files: Mapping[str, Path],
    *,
    message: str,
    private: bool = False,
    branch: str | None = None,
    kept: Collection[str] = (),
) -> str:
    """Puts files into the repository, made where there is none, in one commit; returns its address.

    Weights and the index of a model that the repository has from before, and that are not among the
    files, are removed, so that nobody reads a mixture. Large files that an interrupted upload has
    brought there already are not sent again.

    Args:
        files: as of `model_files`.
        private: of a new repository. One that everybody sees is refused.
        branch: made where there is none; None is the main branch.
        kept: those of the files that stay as they are where the repository has them.

    Raises:
        PermissionError: the account may not write there, or the repository is not private.
        OSError: the hub cannot be reached, or gives another answer than it should.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    hub = HfApi()
    with _refusals(name):
        hub.create_repo(name, private=private or None, exist_ok=True)
        if private and not hub.repo_info(name).private:
            raise PermissionError(
                f"{name} is there already, and everybody can see it: make it private on its page "
                "on the Hugging Face hub first, or leave out --private"
            )
        if branch is not None:
            hub.create_branch(name, branch=branch, exist_ok=True)
        there = hub.list_repo_files(name, revision=branch)
        old = (file for file in there if any(fnmatch(file, each) for each in REPLACED))
        commit = hub.create_commit(
            name,
            [
                *(
                    CommitOperationAdd(path, str(file))
                    for path, file in files.items()
                    if not (path in kept and path in there)
                ),
                *(CommitOperationDelete(file) for file in old if file not in files),
            ],
            commit_message=message,
            revision=branch,
        )
    return str(commit.repo_url)


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    """What the hub or the network refuses, as an OSError in one line that says what to do."""
    from huggingface_hub import errors

    hub = "the Hugging Face hub"
    try:
        yield
    except PermissionError:  # our own
        raise
    except errors.LocalTokenNotFoundError:
        raise PermissionError(f"Nobody is logged in to {hub}: {LOG_IN}") from None
    except errors.OfflineModeIsEnabled:
        raise ConnectionError(f"HF_HUB_OFFLINE is set: unset it to reach {hub}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        reason = (error.server_message or str(error)).strip().split("\n")[0]
        if status == 401:
            text = f"{hub} does not accept the token: {LOG_IN}"
            raise PermissionError(text[0].upper() + text[1:]) from None
        if status == 403:
            raise PermissionError(f"{hub} refuses to write {name}: {reason}. {LOG_IN}") from None
        raise OSError(f"{hub} answers {status} for {name}: {reason}") from error
    except Exception as error:  # of the HTTP client, of large files' upload, of the disk
        reason = (str(error) or type(error).__name__).strip().split("\n")[0]
        raise ConnectionError(
            f"{name} could not be uploaded to {hub}: {reason}. Repeat the command to go on"
        ) from error
