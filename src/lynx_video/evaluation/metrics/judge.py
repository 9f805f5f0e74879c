"""A vision-language model as a judge of clips, over any endpoint that speaks OpenAI's chat completions.

It sees the rubric (`evaluation/rubric.md`) as the system prompt and the question of `ballot`. Each vote is a request of its own at
temperature 0.7 with its number as the seed: at temperature 0 three votes would be one vote said three times. Where an endpoint knows no
`seed` or no `temperature` (HTTP 400 or 422 that names it), it is left out, and the tally says so.

A score is the mean of the valid votes and n is how many those are; without any the score is None with the reasons. A vote that failed
is never a zero and never hidden: the tally counts it. Valid votes are kept on disk by clip, prompt, rubric, model, url, number of
frames and number of the vote; failed ones only in memory, so that one run asks once and the next run asks again.

The key is read from the environment for the client, and for nothing else. It is in no error, file, log or repr; what the endpoint
says is searched for it before it goes anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadRequest, LynxError, MissingDependency
from lynx_video.evaluation.metrics.ballot import AXES, VERSION, Tally, Vote, marks_in, question, scores_of
from lynx_video.evaluation.metrics.score import Score
from lynx_video.work import Shelf, keep

if TYPE_CHECKING:
    from lynx_video.types import Video

RUBRIC = Path(__file__).parents[1] / "rubric.md"
TEMPERATURE = 0.7
RETRIES = 2
"""How often the client repeats a request after 408, 409, 429, 5xx, a timeout or a lost connection."""
MOST_SILENT = 12
"""So many timeouts in a row end a run: with the defaults that is half an hour without a word."""
CONNECT_SECONDS = 10.0
NO_KEY = "none"
"""Sent where the environment has no key; servers on one's own machine ask for none."""
TIMED_OUT, UNREACHABLE, NO_CHAT = "timed out", "not reachable", "no chat completion"
FILTERED = ("content_filter", "content_policy_violation")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """A vision-language model that judges clips."""

    judge_url: str | None = None
    "base url of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; no judge by default"
    judge_model: str | None = None
    "name of the judge model at that endpoint"
    judge_key: str = "OPENAI_API_KEY"
    "name of the environment variable that holds the endpoint's key (never the key itself); need not be set for a server without keys"
    judge_votes: int = 3
    "votes on each clip, averaged"
    judge_frames: int = 8
    "evenly spaced frames of a clip that the judge sees"
    judge_timeout: float = 60.0
    "seconds to wait for an answer"
    judge_parallel: int = 4
    "clips judged at the same time"
    judge_price_in: float | None = None
    "price of a million tokens sent, for the report's cost"
    judge_price_out: float | None = None
    "price of a million tokens answered, for the report's cost"

    def __post_init__(self) -> None:
        # What was given is not repeated where it could be or hold a secret.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.judge_key):
            raise BadRequest(
                "judge_key must be the name of an environment variable in capitals, such as OPENAI_API_KEY, not the key itself."
            )
        if self.judge_url is not None:
            if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", self.judge_url) or "@" in self.judge_url:
                raise BadRequest(
                    "judge_url must be an http address such as http://localhost:8000/v1, without user, password or query; "
                    "a key belongs in the environment variable that judge_key names."
                )
            if not self.judge_model:
                raise BadRequest(f"judge_url {self.judge_url} needs judge_model, the name of a model there.")
        elif self.judge_model is not None:
            raise BadRequest(f"judge_model {self.judge_model!r} needs judge_url, the endpoint that has it.")
        for name, most in (("judge_votes", 99), ("judge_frames", 256), ("judge_parallel", 256)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise BadRequest(f"{name} must be a whole number from 1 to {most}, got {value!r}.")
        _number("judge_timeout", self.judge_timeout, 0.05, 3600)
        for name in ("judge_price_in", "judge_price_out"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 0, 1_000_000)
        if (self.judge_price_in is None) != (self.judge_price_out is None):
            raise BadRequest("judge_price_in and judge_price_out go together; give both, 0 for what is free.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """Why a request has no answer. failure: in a few words; status: of HTTP, 0 if it was none; detail: what was said, as it came."""

    failure: str
    status: int = 0
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip to judge. hash: of its content. read: gives uint8 [F, H, W, 3] and frames per second, called if votes are missing."""

    hash: str
    prompt: str
    read: Callable[[], tuple[Video, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """scores: by `judge/AXIS`. votes: in order, failed ones too; none for a clip that cannot be read."""

    scores: dict[str, Score]
    votes: tuple[Vote, ...] = ()


class Judge:
    """Judges clips, from several threads if need be. cache: the folder of the valid votes. tally: of all so far."""

    def __init__(self, config: JudgeConfig, cache: Path) -> None:
        """Raises BadRequest for a config without an endpoint or a key that cannot be one, MissingDependency without `openai`."""
        if config.judge_url is None or config.judge_model is None:
            raise BadRequest("there is no judge without judge_url and judge_model.")
        self.config, self.tally = config, Tally()
        self.url, self.model = config.judge_url.rstrip("/"), config.judge_model
        self.rubric = RUBRIC.read_text(encoding="utf-8")
        self.rubric_hash = hashlib.sha256(self.rubric.encode()).hexdigest()
        self._shelf, self._client = Shelf(folder=cache), _client(config, self.url)
        self._failed: dict[str, Vote] = {}
        self._counted: set[str] = set()
        self._busy: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._answered = False
        self._silent = 0  # questions in a row that timed out
        self._end: LynxError | None = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def check(self) -> None:
        """Ask the endpoint for its models, so that a wrong url or key is known before the work; for one word if it has no such list.

        Raises LynxError where nothing answers, BadRequest where the key, the url or the model is refused.
        """
        answer, trouble = self._send(self._client.models.list)
        if trouble is not None and trouble.failure == TIMED_OUT:
            trouble = Trouble(failure=UNREACHABLE, detail=f"no answer in {self.config.judge_timeout:g} s")
        if trouble is not None and trouble.failure != NO_CHAT and trouble.status not in (403, 404, 405):
            self._stop(trouble)
        elif trouble is not None or not hasattr(answer, "data"):
            vote = self._ask([{"role": "user", "content": "Answer with one word: ok"}], 0)
            self.tally.tokens_in += vote.tokens_in or 0
            self.tally.tokens_out += vote.tokens_out or 0

    def __call__(self, frames: Video, fps: float, prompt: str, clip_hash: str) -> Verdict:
        """The verdict on uint8 [F, H, W, 3]; see `judge`."""
        return self.judge(Clip(hash=clip_hash, prompt=prompt, read=lambda: (frames, fps)))

    def has(self, clip: Clip) -> bool:
        """Whether all votes on a clip are kept from before, so that nobody need be asked."""
        keys = [self._key_of(clip, number) for number in range(self.config.judge_votes)]
        return all(self._shelf.value(key, key) is not None for key in keys)

    def judge(self, clip: Clip) -> Verdict:
        """All votes on a clip, those that are kept from before taken from there, and their mean.

        Raises LynxError where the endpoint cannot be reached, BadRequest where it refuses the key, the url or the model, BadOutput
        for a cache that cannot be written: nothing else could be judged either. All other trouble is in the verdict.
        """
        keys = [self._key_of(clip, number) for number in range(self.config.judge_votes)]
        with self._lock:
            busy = self._busy.setdefault(keys[0], threading.Lock())
        votes: list[Vote] = []
        messages: list[dict[str, Any]] = []
        with busy:  # the same clip twice in a folder is asked for once
            for number, key in enumerate(keys):
                vote = self._kept(key)
                if vote is None:
                    try:
                        messages = messages or self._messages(clip)
                    except LynxError as error:
                        return self._unread(" ".join(str(error).split())[:300])
                    vote = self._ask(messages, number)
                    with self._lock:
                        self.tally.add(vote)
                        self._counted.add(key)
                    self._keep(key, vote)
                votes.append(vote)
        return Verdict(scores=scores_of(votes), votes=tuple(votes))

    def to_json(self) -> dict[str, Any]:
        """Who judged, how, what it took and what failed; costs are None without prices. Plain JSON values."""
        tally, config = self.tally, self.config

        def cost(tokens_in: int, tokens_out: int) -> float | None:
            if config.judge_price_in is None or config.judge_price_out is None:
                return None
            return round((tokens_in * config.judge_price_in + tokens_out * config.judge_price_out) / 1e6, 6)

        return {
            "model": self.model,
            "url": self.url,
            "rubric": self.rubric_hash,
            "votes": config.judge_votes,
            "frames": config.judge_frames,
            "temperature": TEMPERATURE,
            **asdict(tally),
            "failures": dict(sorted(tally.failures.items())),
            "left_out": sorted(tally.left_out),
            "cost": cost(tally.tokens_in, tally.tokens_out),
            "cost_with_cached": cost(tally.tokens_in + tally.cached_tokens_in, tally.tokens_out + tally.cached_tokens_out),
        }

    def _key_of(self, clip: Clip, number: int) -> str:
        facts = [VERSION, clip.hash, clip.prompt, self.rubric_hash, self.model, self.url, self.config.judge_frames, number]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _kept(self, key: str) -> Vote | None:
        value = self._shelf.value(key, key)
        vote = Vote(**value) if value is not None else self._failed.get(key)
        if vote is not None:
            with self._lock:
                self._answered |= value is not None
                self.tally.add(vote, cached=value is not None, again=key in self._counted)
                self._counted.add(key)
        return vote

    def _keep(self, key: str, vote: Vote) -> None:
        if vote.marks is None:
            self._failed[key] = vote
        else:
            keep(self._shelf, key, key, (asdict(vote), {}))

    def _messages(self, clip: Clip) -> list[dict[str, Any]]:
        frames, fps = clip.read()
        content = question(frames, fps, clip.prompt, self.config.judge_frames)
        return [{"role": "system", "content": self.rubric}, {"role": "user", "content": content}]

    def _unread(self, why: str) -> Verdict:
        with self._lock:
            self.tally.add(Vote(failure="clip not readable", detail=why))
        return Verdict(scores={f"judge/{axis}": Score(value=None, n=0, reason=why) for axis in AXES})

    def _ask(self, messages: list[dict[str, Any]], number: int) -> Vote:
        while True:
            with self._lock:
                if self._end is not None:  # another thread found that nothing can be judged
                    raise type(self._end)(str(self._end))
                self.tally.requests += 1
                sent = {"temperature": TEMPERATURE, "seed": number}
                sent = {name: value for name, value in sent.items() if name not in self.tally.left_out}
            create = self._client.chat.completions.create
            answer, trouble = self._send(lambda: create(model=self.model, messages=messages, **sent))  # noqa: B023 (called at once)
            if trouble is None:
                if isinstance(getattr(answer, "choices", None), list):
                    self._answered, self._silent = True, 0
                    return self._read(answer)
                trouble = Trouble(failure=NO_CHAT, detail=str(answer))
            unknown = {name for name in sent if trouble.status in (400, 422) and re.search(rf"\b{name}\b", trouble.detail)}
            if not unknown:
                self._stop(trouble)
                return Vote(failure=trouble.failure, detail=self._clean(trouble.detail))
            with self._lock:
                self.tally.left_out |= unknown

    def _send(self, call: Callable[[], Any]) -> tuple[Any, Trouble | None]:
        import openai

        try:
            return call(), None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:  # the last two: a body of another shape
            cause = error.__cause__
            if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
                return None, Trouble(failure=UNREACHABLE, detail=str(cause))
            if isinstance(error, openai.APITimeoutError):
                return None, Trouble(failure=TIMED_OUT)
            if isinstance(error, openai.APIStatusError):
                body = error.body if isinstance(error.body, dict) else {"message": error.body}
                said = str(body.get("message") or body.get("detail") or "")
                failure = "refused" if error.code in FILTERED else f"http {error.status_code}"
                return None, Trouble(failure=failure, status=int(error.status_code), detail=said)
            lost = isinstance(error, openai.APIConnectionError)
            return None, Trouble(failure="connection lost" if lost else NO_CHAT, detail=str(cause or error))

    def _stop(self, trouble: Trouble) -> None:
        """Raise, here and in all threads, if no other request would fare better. What the endpoint says of a key is not repeated."""
        where, status = f"the judge at {self.url}", trouble.status
        end: LynxError | None = None
        self._silent = self._silent + 1 if trouble.failure == TIMED_OUT else 0
        if self._silent >= MOST_SILENT:
            end = LynxError(
                f"{where} did not answer {MOST_SILENT} questions one after the other within {self.config.judge_timeout:g} s each: "
                "give it more with --judge-timeout, or fewer at a time with --judge-parallel; what is judged already is kept."
            )
        elif trouble.failure == UNREACHABLE:
            end = LynxError(
                f"{where} can't be reached ({self._clean(trouble.detail)}): start it, or correct --judge-url; "
                "what is judged already is kept."
            )
        elif status == 401 or (status == 403 and not self._answered):  # later a 403 may be a gateway's word on one clip
            name = self.config.judge_key
            which = f"the key in {name}" if _key(self.config) else f"a request without a key ({name} is not set)"
            end = BadRequest(
                f"{where} refuses {which} (HTTP {status}): put a key of this endpoint into that environment variable, "
                "or name another variable with --judge-key."
            )
        elif status in (404, 405):
            end = BadRequest(
                f"{where} has no model {self.model!r} or no chat completions (HTTP {status}): check --judge-model, "
                "and --judge-url, which usually ends in /v1."
            )
        elif trouble.failure == NO_CHAT and not self._answered:
            end = BadRequest(f"{where} answers, but with no chat completion: check --judge-url, which usually ends in /v1.")
        if end is not None:
            self._end = end
            raise end

    def _read(self, answer: Any) -> Vote:
        """The vote in a chat completion."""
        usage, choice = getattr(answer, "usage", None), answer.choices[0] if answer.choices else None
        counts = [getattr(usage, f"{kind}_tokens", None) for kind in ("prompt", "completion")]
        tokens_in, tokens_out = (count if isinstance(count, int) else None for count in counts)
        message, finish = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
        refusal, text = (str(getattr(message, name, None) or "") for name in ("refusal", "content"))
        if refusal or finish == "content_filter":
            marks, said = None, "refused"
        else:
            marks, said = marks_in(text)
        if marks is not None:
            return Vote(marks=marks, reason=self._clean(said), tokens_in=tokens_in, tokens_out=tokens_out)
        failure = "cut off" if finish == "length" else said
        return Vote(failure=failure, detail=self._clean(refusal or text), tokens_in=tokens_in, tokens_out=tokens_out)

    def _clean(self, text: str) -> str:
        key = _key(self.config)
        return " ".join((text.replace(key, "***") if key else text).split())[:300]


def judge_all(judge: Judge, clips: Iterable[Clip]) -> Iterator[Verdict]:
    """The verdicts in the order of the clips, `judge_parallel` clips at a time. Raises as `Judge.judge`, and then asks no more."""
    threads = ThreadPoolExecutor(judge.config.judge_parallel, thread_name_prefix="judge")
    try:
        for verdict in [threads.submit(judge.judge, clip) for clip in clips]:
            yield verdict.result()
    finally:
        threads.shutdown(cancel_futures=True)


def _key(config: JudgeConfig) -> str:
    """The endpoint's key, "" if there is none. Raises BadRequest, without it, for one that no header can hold."""
    key = os.environ.get(config.judge_key, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise BadRequest(f"the environment variable {config.judge_key} holds characters that no key has.")
    return key


def _client(config: JudgeConfig, url: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingDependency("a judge needs the openai client: pip install 'lynx-video[evaluate]'") from error
    timeout = openai.Timeout(config.judge_timeout, connect=min(config.judge_timeout, CONNECT_SECONDS))
    return openai.OpenAI(base_url=url, api_key=_key(config) or NO_KEY, timeout=timeout, max_retries=RETRIES)


def _number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BadRequest(f"{name} must be a number from {low} to {high}, got {value!r}.")
