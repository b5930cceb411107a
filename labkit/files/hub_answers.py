"""Says in one line why the hub did not do what it was asked to, and what helps."""

from __future__ import annotations

from collections.abc import Iterator

from labkit.errors import shown

LOG_IN = "log in with hf auth login"


def explain_hub(error: Exception, repository: str) -> str:
    """Say why huggingface_hub failed with a repository, and the way out.

    Its errors are wrapped in each other: a download that finds the hub busy and nothing in the
    cache says only that nothing is in the cache. The first that says more counts.
    """
    for cause in _causes(error):
        said = _known(cause, repository)
        if said:
            return said
    first = str(error).strip().splitlines() or [type(error).__name__]
    return f"{shown(first[0])}; check the name and the network"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _known(error: BaseException, repository: str) -> str:
    from huggingface_hub import errors, get_token

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{repository}"
        if get_token():
            return f"it is gated, and your account has no access to it yet; ask for it at {page}"
        return f"it is gated; ask for access at {page}, then {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        if get_token():
            return (
                "repository not found: there is none of that name, or it is private and your "
                "account may not see it; check the name, and your account with hf auth whoami"
            )
        return (
            "repository not found: there is none of that name, or it is private; check the name, "
            f"or {LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision; name a branch, a tag or a commit of it after the @"
    if isinstance(error, errors.DisabledRepoError):
        return "the hub has disabled this repository"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"there is no token here; {LOG_IN}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline mode is on and it is not in the cache; unset HF_HUB_OFFLINE to go online"
    if isinstance(error, errors.HfHubHTTPError):
        return _by_status(error.response.status_code, bool(get_token()))
    # HTTPError is that of the library beneath, which another version of the hub's has changed.
    unreachable = (errors.HTTPError, ConnectionError, TimeoutError)  # type: ignore[attr-defined]
    if isinstance(error, unreachable):
        return "the hub cannot be reached and it is not in the cache; check the network"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({shown(error.filename or 'its cache')})"
    return ""


def _by_status(status: int, logged_in: bool) -> str:
    if status == 401:
        if logged_in:
            return "the hub does not accept your token (401); log in again with hf auth login"
        return f"the hub wants to know who you are (401); {LOG_IN}"
    if status == 403:
        return (
            "your token may not do this (403); make one that may (to upload: one that can write) "
            "at https://huggingface.co/settings/tokens, and log in again with hf auth login"
        )
    if status == 429:
        return (
            "the hub had too many requests from here (429); wait some minutes"
            f"{'' if logged_in else ', or ' + LOG_IN + ', which raises the limit'}"
        )
    if status >= 500:
        return f"the hub has trouble of its own ({status}); try again later"
    return ""
