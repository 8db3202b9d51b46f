"""Regexes, grammars, what is refused, limits of size and time, and the tokens that a grammar forces."""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from typing import Any

import numpy as np
import pytest
from structured import SIZE_PADDING, Vocabulary, generate, small_vocabulary

from pipelines.errors import InputError
from pipelines.sampling.constraints import (
    CompilerBusyError,
    Constraint,
    ConstraintCompiler,
    ConstraintError,
    Thinking,
    compiler,
)
from pipelines.sampling.sampler import NoTokenLeftError
from pipelines.text.parsers import ThinkingSyntax

QWEN3, GEMMA4 = (
    ThinkingSyntax("<think>", "</think>", tail="\n\n"),
    ThinkingSyntax("<|channel>", "<channel|>", "thought\n"),
)
S = {"type": "string"}


@pytest.fixture
def vocabulary() -> Vocabulary:
    return small_vocabulary()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def follow(constraint: Constraint, vocabulary: Vocabulary, text: str) -> bool:
    """Whether the tokens of a text are allowed; accepts those that are."""
    for token in vocabulary.ids(text):
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return True


@pytest.mark.parametrize(
    "pattern", ["[a-c]{3}", "(yes|no)", r"\d{3}-\d{4}", "é+ü", "a?", "(?i)abc", "[^\\n]{5,9}", "a\"b/c'"]
)
def test_regexes(vocabulary: Vocabulary, pattern: str) -> None:
    for seed in range(5):
        answer = generate(vocabulary, vocabulary.compiler.regex(pattern), rng(seed))
        assert answer.finish_reason == "stop" and re.fullmatch(pattern, answer.text)


def test_a_grammar(vocabulary: Vocabulary) -> None:
    lark = 'start: sum\nsum: term ("+" term){0,5}\nterm: NUMBER | "(" sum ")"\nNUMBER: /[1-9][0-9]{0,3}/'
    for seed in range(20):
        answer = generate(vocabulary, vocabulary.compiler.grammar(lark), rng(seed), max_steps=300)
        assert answer.finish_reason == "length" or isinstance(eval(answer.text), int)


def test_a_choice(vocabulary: Vocabulary) -> None:
    texts = ["yes", "no", 'a "quoted" \\ text', "a\x7f\x01\n\u2028b", "größe 中"]
    found = {generate(vocabulary, vocabulary.compiler.choice(texts), rng(seed)).text for seed in range(30)}
    assert found <= set(texts) and len(found) > 2
    for text in texts:
        constraint = vocabulary.compiler.choice(texts)
        assert follow(constraint, vocabulary, text) and constraint.mask().any()
    for wrong in ([], ["a"] * 5000, [""], ["a" * 20_000], ["\ud800"]):
        with pytest.raises(InputError):
            vocabulary.compiler.choice(wrong)


def test_a_json_object(vocabulary: Vocabulary) -> None:
    for seed in range(10):
        answer = generate(vocabulary, vocabulary.compiler.json_object(), rng(seed))
        assert isinstance(json.loads(answer.text), dict)


def test_true_is_a_schema(vocabulary: Vocabulary) -> None:
    assert follow(vocabulary.compiler.json_schema(True), vocabulary, '[1, "a"]')


@pytest.mark.parametrize(("schema", "message"), [
    ({"not": S}, "not"),
    ({"if": S, "then": S}, "if.*then"),
    ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
    ({"type": "array", "contains": S}, "contains"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"dependencies": {"a": ["b"]}}, "dependencies"),
    ({"propertyNames": {"maxLength": 3}}, "propertyNames"),
    ({"unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"$dynamicRef": "#a"}, "dynamicRef"),
    ({"$ref": "http://x/y"}, "http://x/y"),
    ({"$ref": "#/nowhere"}, "nowhere"),
    ({"$ref": "#"}, "JSON schema"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"type": "string", "format": "color"}, "color"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "string", "pattern": "(a)\\1"}, "backreferences"),
    ({"type": "integer", "exclusiveMinimum": True, "minimum": 5}, "exclusiveMinimum"),
    ({"type": "object", "minProperties": 3, "required": ["a"]}, "minProperties"),
    ({"type": "foo"}, "foo"),
    ({"enum": []}, "empty"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    ({"x-guidance": {"lenient": True}, "not": S}, "not"),
    ([], "must be an object"),
    (False, "must be an object"),
    ("{}", "must be an object"),
    ({"const": {1, 2}}, "not JSON"),
    ({"multipleOf": float("nan")}, "JSON schema"),
    ({"multipleOf": float("inf")}, "JSON schema"),
])  # fmt: skip
def test_schemas_that_are_refused(vocabulary: Vocabulary, schema: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vocabulary.compiler.json_schema(schema)


@pytest.mark.parametrize(("pattern", "message"), [
    ("(", "unclosed group"), ("a(?!b)", "look-around"), ("[z-a]", "range"), ("\ud800", "Unicode"), (5, "string"),
])  # fmt: skip
def test_regexes_that_are_refused(vocabulary: Vocabulary, pattern: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vocabulary.compiler.regex(pattern)


@pytest.mark.parametrize("lark", ["", "start", "begin: /a/", "start: other", "start: <no_such_token>", 'start: "a'])
def test_grammars_that_are_refused(vocabulary: Vocabulary, lark: str) -> None:
    with pytest.raises(InputError, match="the grammar can't be used"):
        vocabulary.compiler.grammar(lark)


def nested(levels: int, wrap: Any) -> Any:
    return functools.reduce(lambda inner, _: wrap(inner), range(levels), S)


EXPLODING: dict[str, tuple[str, Any]] = {
    "groups": ("regex", "(" * 100_000 + ")" * 100_000),
    "groups within bounds": ("regex", "(" * 8000 + ")" * 8000),
    "deep grammar": ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "long grammar": ("grammar", "start: /a/\n" + "# \n" * 50_000),
    "multiples": ("json_schema", {"allOf": [{"type": "integer", "multipleOf": p} for p in (3, 5, 7, 11, 13, 17, 19)]}),
    "a multiple": ("json_schema", {"type": "number", "multipleOf": 1234567.8}),
    "small multiples": ("json_schema", {"type": "number", "multipleOf": 1e-300}),
    "intersections": ("json_schema", {"allOf": [{"anyOf": [{"required": [f"{key}{i}"]} for key in "ab"]}
                                                for i in range(16)]}),
    "unions": ("json_schema", nested(14, lambda inner: {"anyOf": [inner, {"type": "array", "items": inner}]})),
    "deep": ("json_schema", nested(5000, lambda inner: {"items": inner})),
    "large": ("json_schema", {"properties": {f"property {i}": {"type": "string"} for i in range(5000)}}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLODING)
def test_what_explodes_is_refused_in_time(vocabulary: Vocabulary, name: str) -> None:
    method, argument = EXPLODING[name]
    start = time.monotonic()
    with pytest.raises(InputError):
        getattr(vocabulary.compiler, method)(argument)
    assert time.monotonic() - start < compiler.TIME_LIMIT_S + 5


LARGE: dict[str, tuple[str, Any]] = {
    "doubling": ("grammar", "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(60)) + '\na60: "x"'),
    "complement": ("grammar", "start: A\nA: ~/(.*a.{15}b.*)/ & /(.|x)*c.{15}/"),
    "alternatives in a row": ("regex", "(a?){5000}a{5000}"),
    "repetition": ("regex", "((((a{1,100}){1,100}){1,100}){1,100})"),
    "wild cards": ("regex", "(.*a.*b.*c.*d){20}"),
    "alternatives": ("regex", "|".join(f"a{i}.*z{i}" for i in range(1000))),
    "enumeration": ("json_schema", {"enum": [f"value {i}" for i in range(5000)]}),
    "long arrays": ("json_schema", {"type": "array", "items": S, "minItems": 100_000}),
    "ambiguity": ("grammar", 'start: start start | start start start | "a" | ""'),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_is_large_advances_or_ends_its_request(vocabulary: Vocabulary, name: str) -> None:
    method, argument = LARGE[name]
    try:
        answer = generate(vocabulary, getattr(vocabulary.compiler, method)(argument), rng(), max_steps=100)
    except InputError as error:
        assert "\n" not in str(error) and ("can't be used" in str(error) or isinstance(error, ConstraintError))
    else:
        assert answer.finish_reason in ("stop", "length")


def test_a_compilation_that_takes_too_long_is_left_behind(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "TIME_LIMIT_S", 0.05)
    is_released = threading.Event()
    monkeypatch.setattr(compiler, "_matcher", lambda *arguments: is_released.wait(30))
    fresh = ConstraintCompiler(vocabulary.text, vocabulary.vocab_size, vocabulary.text.eos_token_ids)
    fresh.warm_up()
    for letter in "abcd":
        for _ in range(2):  # no second thread for the second one
            with pytest.raises(InputError, match=r"takes more than 0\.05 s"):
                fresh.regex(letter)
    with pytest.raises(CompilerBusyError, match="try again later"):
        fresh.regex("e")
    is_released.set()


def test_compiling_does_not_hold_the_interpreter(vocabulary: Vocabulary) -> None:
    schema = {"properties": {f"p{i}": {"type": "string"} for i in range(2000)}, "required": ["p0"]}
    longest, last, is_done = 0.0, time.monotonic(), threading.Event()

    def watch() -> None:
        nonlocal longest, last
        while not is_done.wait(0.005):
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    try:
        vocabulary.compiler.json_schema(schema)
    except InputError:
        pass
    finally:
        took = time.monotonic() - start
        is_done.set()
        watcher.join()
    assert took < 0.5 or longest < took / 2


def test_forced_tokens_need_no_step(vocabulary: Vocabulary) -> None:
    schema = {
        "properties": {"weather": {"const": "sunny all day long"}, "x": {"type": "boolean"}},
        "required": ["weather", "x"],
    }
    compiled = vocabulary.compiler.json_schema({"type": "object", **schema, "additionalProperties": False})
    answer = generate(vocabulary, compiled.copy(), rng())
    assert json.loads(answer.text)["weather"] == "sunny all day long"
    assert answer.num_steps < len(answer.tokens) / 3
    assert compiled.forced_tokens() == vocabulary.ids('{"weather": "sunny all day long", "x": ')[:-1]
    with_logprobs = generate(vocabulary, compiled.copy(), rng(), logprobs=0)
    assert with_logprobs.num_steps == len(with_logprobs.tokens)
    short = generate(vocabulary, compiled.copy(), rng(), max_new_tokens=4)
    assert short.finish_reason == "length" and len(short.tokens) == 4
    stopped = generate(vocabulary, compiled.copy(), rng(), stop=("sunny",))
    assert stopped.finish_reason == "stop" and stopped.text == '{"weather": "'


def test_forced_tokens_count_for_penalties(vocabulary: Vocabulary) -> None:
    """A penalty sees them: without it the likeliest letter is chosen, with it the one that was not forced before."""
    a, b = vocabulary.ids("a")[0], vocabulary.ids("b")[0]
    row = np.zeros(vocabulary.vocab_size, np.float32)
    row[a], row[b] = 5, 4.5
    for penalty, chosen in ((0.0, "a"), (1.0, "b")):
        compiled = vocabulary.compiler.regex("(xa|ya)[ab]")
        answer = generate(vocabulary, compiled, rng(), lambda step: row, temperature=0.0, presence_penalty=penalty)
        assert answer.text[-1] == chosen


def test_greedy_takes_the_graphs_choice_where_it_is_allowed(vocabulary: Vocabulary) -> None:
    a, b, c = (vocabulary.ids(text)[0] for text in "abc")
    row = np.zeros(vocabulary.vocab_size, np.float32)
    row[[a, b, c]] = 3, 2, 1
    answer = generate(vocabulary, vocabulary.compiler.regex("[bc][ab]c?"), rng(), lambda step: row, 5, temperature=0.0)
    assert answer.text == "bac"


def test_ends(vocabulary: Vocabulary) -> None:
    (eos,) = vocabulary.text.eos_token_ids
    likes_eos = np.zeros(vocabulary.vocab_size, np.float32)
    likes_eos[eos] = 50
    # The end is complete text, whatever min_tokens and ignore_eos say.
    for params in ({}, {"min_tokens": 10}, {"ignore_eos": True}):
        answer = generate(vocabulary, vocabulary.compiler.regex("ab"), rng(), lambda step: likes_eos, **params)
        assert (answer.text, answer.finish_reason) == ("ab", "stop")
    # Where the grammar may end or go on, the end-of-text token decides.
    answer = generate(vocabulary, vocabulary.compiler.regex("a+"), rng(), lambda step: likes_eos)
    assert set(answer.text) == {"a"} and answer.tokens[-1] == eos
    answer = generate(vocabulary, vocabulary.compiler.regex("(ab)+"), rng(), lambda step: likes_eos, min_tokens=5)
    assert len(answer.tokens) > 5
    answer = generate(vocabulary, vocabulary.compiler.regex("(ab)+"), rng(), lambda step: likes_eos, ignore_eos=True)
    assert answer.finish_reason == "stop" and answer.text.replace("ab", "") == ""


def test_no_token_left(vocabulary: Vocabulary) -> None:
    with pytest.raises(NoTokenLeftError):
        generate(vocabulary, vocabulary.compiler.regex("[ab]"), rng(), allowed_token_ids=tuple(vocabulary.ids("x")))


def test_a_token_that_is_not_allowed(vocabulary: Vocabulary) -> None:
    constraint = vocabulary.compiler.regex("[ab]c")
    with pytest.raises(ConstraintError):
        constraint.accept(vocabulary.ids("x")[0])
    constraint.prepare()
    with pytest.raises(ConstraintError):
        constraint.mask()
    assert not constraint.is_stopped


def test_copies_are_independent(vocabulary: Vocabulary) -> None:
    first = vocabulary.compiler.regex("[ab]{2}")
    second = first.copy()
    assert follow(first, vocabulary, "a") and follow(first, vocabulary, "b") and first.is_stopped
    assert not second.is_stopped and follow(second, vocabulary, "b")
    again = vocabulary.compiler.regex("[ab]{2}")
    assert not again.is_stopped and follow(again, vocabulary, "a")


def test_logits_without_a_token_are_never_chosen(vocabulary: Vocabulary) -> None:
    row = np.zeros(vocabulary.vocab_size, np.float32)
    row[-SIZE_PADDING:] = 100
    answer = generate(vocabulary, vocabulary.compiler.regex("[a-z]{5}"), rng(), lambda step: row)
    assert len(answer.text) == 5


def test_tokens_that_the_model_does_not_have_are_not_forced(vocabulary: Vocabulary) -> None:
    token = vocabulary.ids("</think>")[-1]
    small = ConstraintCompiler(vocabulary.text, token, vocabulary.text.eos_token_ids)
    constraint = small.grammar(f'start: "a" <[{token}]>')
    assert constraint.forced_tokens() == vocabulary.ids("a")
    constraint.accept(vocabulary.ids("a")[0])
    assert constraint.forced_tokens() == [] and not constraint.allows(token)


def think(constraint: Constraint, vocabulary: Vocabulary, thought: str, answer: str) -> bool:
    """Whether a thought, what it forces, and an answer are allowed."""
    is_allowed = follow(constraint, vocabulary, thought)
    for token in constraint.forced_tokens():
        constraint.accept(token)
    return is_allowed and follow(constraint, vocabulary, answer) and constraint.is_stopped


@pytest.mark.parametrize(
    ("syntax", "thought"), [(QWEN3, "<think>\nHm, <b>\n</think>"), (GEMMA4, "<|channel>thought\nHm.<channel|>")]
)
@pytest.mark.parametrize(
    ("method", "body"), [("regex", "[ab]"), ("grammar", 'start: "a" | "b"'), ("json_schema", {"enum": [1, 2]})]
)
def test_thinking_comes_before(
    vocabulary: Vocabulary, syntax: ThinkingSyntax, thought: str, method: str, body: Any
) -> None:
    make, answer = getattr(vocabulary.compiler, method), "1" if method == "json_schema" else "a"
    assert think(make(body, Thinking(syntax)), vocabulary, thought, answer)
    assert think(make(body, Thinking(syntax)), vocabulary, "", answer)
    assert not think(make(body, Thinking(syntax)), vocabulary, thought, "c")
    assert not think(make(body, Thinking(syntax)), vocabulary, "", "c")
    assert think(make(body, Thinking(syntax, is_open=True)), vocabulary, f"Well.{syntax.closer}", answer)


def test_panics_of_the_library_are_errors(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As the library's own, no Exception."""

    def panic(*arguments: Any, **options: Any) -> Any:
        raise PanicException("it went wrong")

    fresh = ConstraintCompiler(vocabulary.text, vocabulary.vocab_size, vocabulary.text.eos_token_ids)
    with monkeypatch.context() as patched, pytest.raises(InputError, match="with this tokenizer: it went wrong"):
        patched.setattr("llguidance.LLTokenizer", panic)
        fresh.warm_up()
    monkeypatch.setattr(compiler, "_matcher", panic)
    with pytest.raises(InputError, match="can't be compiled: it went wrong"):
        fresh.regex("a")


def test_the_tokenizers_of_other_libraries_are_refused() -> None:
    class Tokenizer:
        def to_json(self) -> str:
            return "{}"

    with pytest.raises(InputError, match="with this tokenizer"):
        ConstraintCompiler(Tokenizer(), 10, [0]).json_object()
