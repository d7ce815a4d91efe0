"""A judge behind HTTP: OpenAI's chat completions, as vLLM and most servers speak them."""

from __future__ import annotations

import json
import os
import random
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from threading import Event
from urllib.error import HTTPError

from palimpsest.config import Judge
from palimpsest.judging.prompts import messages

TRANSIENT = {408, 425, 429}  # and all from 500: what may heal
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past the cluster's proxy
LONGEST_MESSAGE = 500  # characters of a server's message that are shown


class Busy(Exception):
    """No reply for now; `wait` are the seconds that the server asks for."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Endpoint:
    """A server that is asked by many threads at once.

    `used` is a file that is touched with every reply, by which our own server sees that it is
    needed; such a one is reached without a proxy.
    """

    def __init__(self, judge: Judge, url: str, used: Path | None = None) -> None:
        self.judge, self.used = judge, used
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.key = _secret(judge)
        self.open = DIRECT.open if used else urllib.request.urlopen

    def replies(self, prompts: list[str]) -> Iterator[tuple[str, str]]:
        """Ask all, and yield each prompt with its reply as soon as it is there.

        Errors: ValueError names the endpoint, after all replies that were still under way.
        """
        stop, failure = Event(), None
        pool = ThreadPoolExecutor(self.judge.asking.concurrency)
        try:
            futures = {pool.submit(self._ask, prompt, stop): prompt for prompt in prompts}
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                if error := future.exception():
                    failure = failure or error
                    stop.set()
                    for other in futures:
                        other.cancel()
                    continue
                if self.used:
                    self.used.touch()
                yield futures[future], future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        if failure:
            raise failure

    def _ask(self, prompt: str, stop: Event) -> str:
        """Return the reply to one prompt, in as many attempts as it may take."""
        asking = self.judge.asking
        attempt, wait = 1, asking.backoff
        while True:
            try:
                return self._post(prompt)
            except Busy as busy:
                if busy.wait > asking.longest_wait:
                    raise ValueError(
                        f"{self.url}: asks to wait {busy.wait:.0f} s ({busy}), which is more than "
                        f"asking.longest_wait, {asking.longest_wait:.0f} s; try again later"
                    ) from None
                pause = max(busy.wait, wait * random.uniform(0.5, 1))
                if attempt == asking.attempts or stop.wait(pause):
                    raise ValueError(f"{self.url}: no reply at attempt {attempt}: {busy}") from None
            attempt, wait = attempt + 1, min(2 * wait, asking.longest_wait)

    def _post(self, prompt: str) -> str:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(self._body(prompt)).encode(), headers)
        try:
            with self.open(request, timeout=self.judge.asking.timeout) as response:
                text = response.read().decode()
        except HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, HTTPException) as error:  # no connection, or one that broke
            raise Busy(f"{type(error).__name__}: {error}") from None
        try:
            return json.loads(text)["choices"][0]["message"]["content"] or ""
        except (ValueError, LookupError, TypeError):
            raise ValueError(
                f"{self.url}: this is no chat completion: {self._shown(text)}"
            ) from None

    def _body(self, prompt: str) -> dict:
        sampling = self.judge.sampling.model_dump()
        if sampling["repetition_penalty"] == 1:  # not every server knows it
            del sampling["repetition_penalty"]
        return {"model": self.judge.model, "messages": messages(prompt), **sampling}

    def _refusal(self, error: HTTPError) -> Exception:
        """Return Busy for what may heal, and for what will not a ValueError with the reason."""
        try:
            text = error.read().decode(errors="replace")
        except (OSError, HTTPException):
            text = ""
        message = f"HTTP {error.code} {error.reason}: {self._shown(text)}"
        if error.code in TRANSIENT or error.code >= 500:
            return Busy(message, _seconds(error.headers.get("Retry-After")))
        return ValueError(f"{self.url}: {message}")

    def _shown(self, text: str) -> str:
        """Return the beginning of a server's message, without the key that it may repeat."""
        return (text.replace(self.key, "…") if self.key else text)[:LONGEST_MESSAGE]


def is_up(url: str) -> bool:
    """Whether a server of our own answers at a URL."""
    try:
        with DIRECT.open(f"{url}/models", timeout=5) as response:
            return response.status == 200
    except (OSError, HTTPException):
        return False


def _secret(judge: Judge) -> str | None:
    if judge.api_key is None:
        return None
    if judge.api_key not in os.environ:
        raise ValueError(
            f"{judge.url}: needs a key: set the environment variable {judge.api_key}, which the "
            "judge's config names as api_key"
        )
    return os.environ[judge.api_key]


def _seconds(retry_after: str | None) -> float:
    """Read the header Retry-After: seconds, or a date; 0 if it is neither."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(retry_after)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
