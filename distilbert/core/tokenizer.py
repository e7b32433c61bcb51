"""The tokenizers of BERT and DistilBERT: word pieces (Wu et al. 2016), on the ``tokenizers`` library."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import threading
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from tokenizers import (
    AddedToken,
    Encoding,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import WordPieceTrainer

from distilbert.core import hub
from distilbert.core.backends import require_backend
from distilbert.core.errors import CheckpointError, DistilBertError, InputError
from distilbert.core.files import replace_file, replace_files

logger = logging.getLogger("distilbert")

VOCAB_FILE = "vocab.txt"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
FILES = (VOCAB_FILE, TOKENIZER_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
SPECIAL = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")  # True is the first, False the last
PADDINGS = ("longest", "max_length", "do_not_pad")
SIDES = ("right", "left")
UNLIMITED = 10**30  # what transformers stores for "no limit"
# What a call can return for each token, with the name that the tokenizers library has for it.
COLUMNS = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}
Text = str | Sequence[str]


class Span(NamedTuple):
    """From ``start`` up to but not including ``end``."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """The arrays or lists a tokenizer call gives, as a mapping and as attributes; ``encodings`` has the details.

    A method that looks for one token, word or character takes its number, or the text's number in the batch and then
    its number; without the text's it means the first. It gives None for what is not there, such as the word of a
    special token.
    """

    def __init__(self, data: dict[str, Any] | None = None, encodings: list[Encoding] | None = None) -> None:
        super().__init__(data)
        self.encodings = encodings

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(name)

    @property
    def is_fast(self) -> bool:
        """Whether ``encodings`` is there, as after a call on text."""
        return self.encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None where it is not known."""
        return self.encodings[0].n_sequences if self.encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of one text of the batch."""
        return self._encoding(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token the number of its word, None for special tokens."""
        return self._encoding(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 or 1, the text of a pair it stems from, None for special tokens."""
        return self._encoding(batch_index).sequence_ids

    def char_to_token(self, batch_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        """The token that covers a character."""
        encoding, char = self._locate(batch_or_char, char)
        return encoding.char_to_token(char, sequence_index)

    def char_to_word(self, batch_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        """The word that covers a character."""
        encoding, char = self._locate(batch_or_char, char)
        return encoding.char_to_word(char, sequence_index)

    def token_to_chars(self, batch_or_token: int, token: int | None = None) -> Span | None:
        """Where a token's characters are in its text."""
        encoding, token = self._locate(batch_or_token, token)
        return _span(encoding.token_to_chars(token))

    def token_to_word(self, batch_or_token: int, token: int | None = None) -> int | None:
        """The word that a token belongs to."""
        encoding, token = self._locate(batch_or_token, token)
        return encoding.token_to_word(token)

    def word_to_chars(self, batch_or_word: int, word: int | None = None, sequence_index: int = 0) -> Span | None:
        """Where a word's characters are in its text."""
        encoding, word = self._locate(batch_or_word, word)
        return _span(encoding.word_to_chars(word, sequence_index))

    def word_to_tokens(self, batch_or_word: int, word: int | None = None, sequence_index: int = 0) -> Span | None:
        """Where a word's tokens are."""
        encoding, word = self._locate(batch_or_word, word)
        return _span(encoding.word_to_tokens(word, sequence_index))

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Make tensors of the lists and arrays, in place; what is a tensor already stays as it is.

        Args:
            tensor_type: ``"np"``, ``"pt"``, ``"tf"`` or ``"jax"``; None does nothing.
            prepend_batch_axis: for the lists of one text: make them a batch of one.

        Raises:
            InputError: no such framework, or rows of unequal lengths.
        """
        if tensor_type is not None:
            for name, value in self.data.items():
                if isinstance(value, (list, tuple, int, float, np.ndarray)):
                    self.data[name] = _as_tensor(name, [value] if prepend_batch_axis else value, tensor_type)
        return self

    def to(self, device: Any, **options: Any) -> BatchEncoding:
        """Move PyTorch tensors to a device, in place."""
        self.data = {name: v.to(device, **options) if hasattr(v, "to") else v for name, v in self.data.items()}
        return self

    def _encoding(self, index: int) -> Encoding:
        if not self.encodings:
            raise InputError("this encoding holds no details; make it by calling the tokenizer on text")
        return self.encodings[index]

    def _locate(self, batch_or_position: int, position: int | None) -> tuple[Encoding, int]:
        if position is None:
            return self._encoding(0), batch_or_position
        return self._encoding(batch_or_position), position


def _span(ends: tuple[int, int] | None) -> Span | None:
    return None if ends is None else Span(*ends)


class DistilBertTokenizer:
    """Text to ids and back.

    Args:
        vocab_file: ``vocab.txt``, one word piece a line.
        tokenizer_file: ``tokenizer.json``, used instead of ``vocab_file``.
        do_basic_tokenize: False leaves the text as it is but for splitting it at white space.
        never_split: words kept whole although they hold punctuation or capitals; they must be in the vocabulary.
        do_lower_case: lower-case, and strip accents unless ``strip_accents`` says otherwise.
        unk_token: stands for what no word piece covers.
        sep_token: ends each text.
        pad_token: fills shorter texts of a batch.
        cls_token: begins the sequence.
        mask_token: stands for a word to predict.
        additional_special_tokens: more tokens that are never split, and left out by ``skip_special_tokens``.
        added_tokens_decoder: tokens that the vocabulary file lacks, by their ids.
        tokenize_chinese_chars: set each CJK character apart.
        strip_accents: None follows ``do_lower_case``.
        clean_text: drop control characters, and make every white space a blank.
        wordpieces_prefix: marks a piece that continues a word.
        clean_up_tokenization_spaces: when decoding, take back the blanks before punctuation.
        model_max_length: what ``truncation=True`` and ``padding="max_length"`` mean without ``max_length``.
        padding_side: ``"right"`` or ``"left"``.
        truncation_side: ``"right"`` or ``"left"``.

    Raises:
        CheckpointError: the vocabulary is absent or not readable.
        InputError: a special token is not in the vocabulary, or an added one does not follow it.
    """

    model_input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    is_fast = True

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        *,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        unk_token: str = "[UNK]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        cls_token: str = "[CLS]",
        mask_token: str = "[MASK]",
        additional_special_tokens: Iterable[str] | None = None,
        added_tokens_decoder: Mapping[Any, Any] | None = None,
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        clean_text: bool = True,
        wordpieces_prefix: str = "##",
        clean_up_tokenization_spaces: bool = True,
        model_max_length: int = UNLIMITED,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        self.do_lower_case = do_lower_case
        self.do_basic_tokenize = do_basic_tokenize
        self.never_split = sorted(never_split or ())
        self.unk_token, self.sep_token, self.pad_token = unk_token, sep_token, pad_token
        self.cls_token, self.mask_token = cls_token, mask_token
        self.additional_special_tokens = list(additional_special_tokens or ())
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.strip_accents = strip_accents
        self.clean_text = clean_text
        self.wordpieces_prefix = wordpieces_prefix
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.model_max_length = int(model_max_length)
        self.padding_side = _one_of("padding_side", padding_side, SIDES)
        self.truncation_side = _one_of("truncation_side", truncation_side, SIDES)
        self._warned_of_max_length = False
        self._lock = threading.Lock()  # padding and truncation are state of the Rust tokenizer
        if tokenizer_file is not None:
            self.backend_tokenizer = _read(tokenizer_file, Tokenizer.from_file)
        elif vocab_file is not None:
            vocab = _read(vocab_file, models.WordPiece.read_file)
            self.backend_tokenizer = Tokenizer(
                models.WordPiece(vocab, unk_token=unk_token, continuing_subword_prefix=wordpieces_prefix)
            )
        else:
            raise InputError("a tokenizer needs vocab_file or tokenizer_file")
        self._set_normalizer()
        self._add_saved(added_tokens_decoder or {})  # after the normalizer, which they go through
        self._configure()

    def _set_normalizer(self) -> None:
        """Say how text is cleaned and split, before any word piece is looked up."""
        if self.do_basic_tokenize:
            self.backend_tokenizer.normalizer = normalizers.BertNormalizer(
                clean_text=self.clean_text,
                handle_chinese_chars=self.tokenize_chinese_chars,
                strip_accents=self.strip_accents,
                lowercase=self.do_lower_case,
            )
            self.backend_tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        else:
            self.backend_tokenizer.normalizer = None
            self.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def _add_saved(self, tokens: Mapping[Any, Any]) -> None:
        """Add tokens, each a text or what ``AddedToken`` takes, at the ids they had when they were saved."""
        present = {token.content: token for token in self.added_tokens_decoder.values()}
        added: dict[int, AddedToken] = {}
        try:
            for index, token in tokens.items():
                if isinstance(token, str):  # added_tokens.json does not say more
                    token = present.get(token) or AddedToken(token, special=token in self.all_special_tokens)
                added[int(index)] = token if isinstance(token, AddedToken) else AddedToken(**token)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"added tokens: {error}; expected a mapping of ids to tokens") from None
        self.backend_tokenizer.add_tokens([added[index] for index in sorted(added)])
        for index in sorted(added):
            found = self.backend_tokenizer.token_to_id(added[index].content)
            if found != index:
                raise InputError(f"added tokens: {added[index].content!r} gets the id {found}, expected {index}")

    def _configure(self) -> None:
        """Bring the library's tokenizer into line with the special tokens and ``never_split``."""
        backend = self.backend_tokenizer
        absent = [token for name in SPECIAL if backend.token_to_id(token := getattr(self, name)) is None]
        if absent:
            raise InputError(f"the vocabulary lacks the special tokens {', '.join(absent)}")
        unknown = [word for word in self.never_split if backend.token_to_id(word) is None]
        if unknown:
            raise InputError(f"never_split names {', '.join(unknown)}, expected words of the vocabulary")
        backend.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in self.never_split])
        # Adding a token again would undo how it was added: with the blank before it, say.
        special = {token.content for token in self.added_tokens_decoder.values() if token.special}
        backend.add_special_tokens([token for token in self.all_special_tokens if token not in special])
        backend.decoder = decoders.WordPiece(prefix=self.wordpieces_prefix)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{self.cls_token}:0 $A:0 {self.sep_token}:0",
            pair=f"{self.cls_token}:0 $A:0 {self.sep_token}:0 $B:1 {self.sep_token}:1",
            special_tokens=[(token, backend.token_to_id(token)) for token in (self.cls_token, self.sep_token)],
        )
        backend.no_padding()
        backend.no_truncation()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Read a tokenizer from a folder or the Hub; ``overrides`` are arguments of the class.

        Where ``tokenizer_config.json`` has no ``added_tokens_decoder``, it was saved before transformers 4.34. Then
        there may be ``added_tokens.json``, and ``special_tokens_map.json`` wins.

        Raises:
            CheckpointError: neither ``tokenizer.json`` nor ``vocab.txt`` is there, or an option is of another type.
        """
        where: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
        }
        stored = _read_options(name_or_path, CONFIG_FILE, **where)
        if "added_tokens_decoder" not in stored:
            stored |= _read_options(name_or_path, SPECIAL_TOKENS_FILE, **where)
            added = _read_options(name_or_path, ADDED_TOKENS_FILE, **where)
            stored["added_tokens_decoder"] = {index: token for token, index in added.items()}
        known = cls.__init__.__kwdefaults__ or {}
        options = {name: value for name, value in stored.items() if name in known} | overrides
        for filename, argument in ((TOKENIZER_FILE, "tokenizer_file"), (VOCAB_FILE, "vocab_file")):
            path = hub.find_file(name_or_path, filename, **where)
            if path is not None:
                arguments: dict[str, Any] = {argument: path, **options}
                try:
                    return cls(**arguments)
                except DistilBertError:
                    raise
                except (TypeError, ValueError, OverflowError) as error:
                    raise CheckpointError(f"{name_or_path}: the tokenizer's options make no sense: {error}") from None
        raise CheckpointError(f"{name_or_path}: no tokenizer there; expected {TOKENIZER_FILE} or {VOCAB_FILE}")

    def save_pretrained(self, folder: str | Path) -> list[Path]:
        """Write ``tokenizer.json``, ``vocab.txt`` and ``tokenizer_config.json``; all of it or nothing."""
        options = {name: getattr(self, name) for name in type(self).__init__.__kwdefaults__ or ()}
        with replace_files(folder) as stage:
            (stage / TOKENIZER_FILE).write_text(self.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
            (stage / VOCAB_FILE).write_text(self._vocabulary_text(), encoding="utf-8")
            options["tokenizer_class"] = type(self).__name__
            text = json.dumps(options, indent=2, default=AddedToken.__getstate__) + "\n"
            (stage / CONFIG_FILE).write_text(text, encoding="utf-8")
            text = json.dumps(self.special_tokens_map, indent=2) + "\n"
            (stage / SPECIAL_TOKENS_FILE).write_text(text, encoding="utf-8")
            written = sorted(path.name for path in stage.iterdir())
        return [Path(folder) / name for name in written]

    def save_vocabulary(self, folder: str | Path, filename_prefix: str | None = None) -> tuple[str]:
        """Write only ``vocab.txt``, with a prefix and a hyphen before its name if wanted."""
        path = Path(folder) / (f"{filename_prefix}-{VOCAB_FILE}" if filename_prefix else VOCAB_FILE)
        with replace_file(path) as file:
            file.write(self._vocabulary_text())
        return (str(path),)

    def _vocabulary_text(self) -> str:
        pieces = self.backend_tokenizer.get_vocab(with_added_tokens=False)
        return "".join(f"{piece}\n" for piece in sorted(pieces, key=pieces.__getitem__))

    def train_new_from_iterator(self, texts: Iterable[str], vocab_size: int, **options: Any) -> Self:
        """A tokenizer like this one with a vocabulary learned from ``texts`` (or batches of texts)."""
        new = copy.deepcopy(self)
        trainer = WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[self.pad_token, self.unk_token, self.cls_token, self.sep_token, self.mask_token],
            continuing_subword_prefix=self.wordpieces_prefix,
            **options,
        )
        new.backend_tokenizer = Tokenizer(models.WordPiece({}, unk_token=self.unk_token))
        new.backend_tokenizer.normalizer = self.backend_tokenizer.normalizer
        new.backend_tokenizer.pre_tokenizer = self.backend_tokenizer.pre_tokenizer
        new.never_split = []  # words of the old vocabulary
        new.backend_tokenizer.train_from_iterator(texts, trainer)
        new._configure()
        return new

    def __call__(
        self,
        text: Text | Sequence[Text],
        text_pair: Text | Sequence[Text] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode a text, a pair of texts, or a batch of either; arguments as in transformers.

        A ``max_length`` alone, without ``truncation`` and ``padding``, cuts, and says so once.

        Returns:
            ``input_ids`` and ``attention_mask`` and what was asked for: lists, or integer arrays (B, L) of the
            framework ``return_tensors`` names (``"np"``, ``"pt"``, ``"tf"``, ``"jax"``).

        Raises:
            InputError: a wrong type or option, or tensors of a batch of unequal lengths without padding.
        """
        is_batch = isinstance(text, (list, tuple)) and (
            not is_split_into_words or (bool(text) and isinstance(text[0], (list, tuple)))
        )
        pairs = _pairs(text, text_pair, is_batch, is_split_into_words)
        if truncation is None and max_length is not None and not padding:
            truncation = True
            if not self._warned_of_max_length:
                logger.warning("texts are cut to max_length=%d, as with truncation=True", max_length)
                self._warned_of_max_length = True
        limit = self.model_max_length if max_length is None else max_length
        special = self.num_special_tokens_to_add(text_pair is not None) if add_special_tokens else 0
        with self._lock:
            cut = self._set_truncation(truncation or False, limit, stride, special)
            self._set_padding(padding, limit, pad_to_multiple_of)
            encodings = self._encode(pairs, is_split_into_words, add_special_tokens)
        longest = max(map(len, encodings), default=0)
        if verbose and not cut and longest > self.model_max_length:
            logger.warning("a text has %d tokens, more than the model's %d", longest, self.model_max_length)
        owners = list(range(len(encodings)))
        if return_overflowing_tokens:
            owners = [i for i, encoding in enumerate(encodings) for _ in range(1 + len(encoding.overflowing))]
            encodings = [part for encoding in encodings for part in (encoding, *encoding.overflowing)]
        asked = {
            "input_ids": True,
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        data: dict[str, Any] = {
            name: [getattr(encoding, COLUMNS[name]) for encoding in encodings]
            for name, wanted in asked.items()
            if wanted or (wanted is None and name in self.model_input_names)
        }
        if return_length:
            data["length"] = [len(encoding) for encoding in encodings]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = owners
        elif return_tensors is None and not is_batch:
            data = {name: value if name == "length" else value[0] for name, value in data.items()}
        return BatchEncoding(data, encodings).convert_to_tensors(return_tensors)

    def _set_truncation(self, truncation: bool | str, limit: int, stride: int, special: int) -> bool:
        """Tell the library how to cut; returns whether it will. ``special`` tokens come on top of each text's."""
        strategy = _strategy("truncation", truncation, TRUNCATIONS)
        if strategy == "do_not_truncate" or limit >= UNLIMITED:
            self.backend_tokenizer.no_truncation()
            return False
        if not 0 <= stride < limit - special:  # the library would panic
            raise InputError(
                f"max_length={limit} with stride={stride}: expected more than {special + max(stride, 0)} tokens, "
                f"for {special} special ones and a stride of at least 0"
            )
        try:
            self.backend_tokenizer.enable_truncation(
                limit, stride=stride, strategy=strategy, direction=self.truncation_side
            )
        except (ValueError, OverflowError) as error:
            raise InputError(f"max_length={limit} with stride={stride}: {error}") from None
        return True

    def _set_padding(self, padding: bool | str, limit: int, pad_to_multiple_of: int | None) -> None:
        """Tell the library how to pad."""
        strategy = _strategy("padding", padding, PADDINGS)
        if strategy == "do_not_pad" or (strategy == "max_length" and limit >= UNLIMITED):
            self.backend_tokenizer.no_padding()
        else:
            self.backend_tokenizer.enable_padding(
                direction=self.padding_side,
                pad_id=self.pad_token_id,
                pad_token=self.pad_token,
                length=limit if strategy == "max_length" else None,
                pad_to_multiple_of=pad_to_multiple_of,
            )

    def _encode(self, pairs: list[Any], is_split_into_words: bool, add_special_tokens: bool) -> list[Encoding]:
        """The library's encodings, with its complaints as ours."""
        backend = self.backend_tokenizer
        try:
            return backend.encode_batch(
                pairs, is_pretokenized=is_split_into_words, add_special_tokens=add_special_tokens
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"text: {error}; expected str, or lists of str") from None
        except Exception as error:  # the library raises bare Exception where a text cannot be cut as asked
            raise InputError(f"text: {error}") from None
        except BaseException as error:
            # How much of a pair a stride leaves room for depends on the texts; the library panics where it
            # is too little, with an exception whose type it does not export.
            if type(error).__name__ != "PanicException":
                raise
            limits = "max_length={max_length} with stride={stride}".format(**backend.truncation)
            raise InputError(f"{limits} leaves too little room in a pair") from None

    def pad(
        self,
        encoded: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encoded texts, a mapping of lists or a list of mappings, to one length (for data collators).

        ``verbose`` is there for transformers' collators, and changes nothing.
        """
        if isinstance(encoded, (list, tuple)):
            encoded = {name: [entry[name] for entry in encoded] for name in encoded[0]}
        columns = {name: _lists(value) for name, value in encoded.items()}
        is_batch = not columns["input_ids"] or isinstance(columns["input_ids"][0], list)
        if not is_batch:
            columns = {name: [value] for name, value in columns.items()}
        lengths = [len(row) for row in columns["input_ids"]]
        columns.setdefault("attention_mask", [[1] * length for length in lengths])
        strategy = _strategy("padding", padding, PADDINGS)
        limit = self.model_max_length if max_length is None else max_length
        length = max(lengths, default=0) if strategy == "longest" else 0
        if strategy == "max_length" and limit < UNLIMITED:
            length = limit
        if pad_to_multiple_of:
            length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
        fillers = {
            "input_ids": self.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": 0,
            "special_tokens_mask": 1,
        }
        for name in fillers.keys() & columns.keys():
            for index, row in enumerate(columns[name]):
                filler = [fillers[name]] * (length - len(row))
                columns[name][index] = row + filler if self.padding_side == "right" else filler + row
        if return_attention_mask is False:
            del columns["attention_mask"]
        if not is_batch:
            columns = {name: rows[0] for name, rows in columns.items()}
        return BatchEncoding(columns).convert_to_tensors(return_tensors)

    def encode(self, text: Text, text_pair: Text | None = None, **options: Any) -> list[int]:
        """The ids of one text or pair; options as in a call."""
        return self(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Text, text_pair: Text | None = None, **options: Any) -> BatchEncoding:
        """A call on one text or pair, by its older name."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, texts: Sequence[Any], **options: Any) -> BatchEncoding:
        """A call on a batch of texts or pairs, by its older name."""
        return self(list(texts), **options)

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The word pieces of a text, or of a pair one after the other."""
        return self(text, pair, add_special_tokens=add_special_tokens, verbose=False).tokens()

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of ids, as far as the word pieces keep it."""
        ids = [token_ids] if isinstance(token_ids, int) else np.asarray(token_ids).reshape(-1).tolist()
        text = self.backend_tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return _clean_up(text) if clean else text

    def batch_decode(self, sequences: Iterable[Any], **options: Any) -> list[str]:
        """``decode`` for each of several rows of ids."""
        return [self.decode(sequence, **options) for sequence in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or of each; an unknown token has that of ``unk_token``."""
        if isinstance(tokens, str):
            found = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        special = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend_tokenizer.id_to_token(int(index)) for index in ids if int(index) not in special]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join word pieces into words."""
        return self.backend_tokenizer.decoder.decode(list(tokens)) if tokens else ""

    def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
        """``[CLS] first [SEP]``, with ``second [SEP]`` after it for a pair."""
        ids = [self.cls_token_id, *first, self.sep_token_id]
        return ids if second is None else [*ids, *second, self.sep_token_id]

    def create_token_type_ids_from_sequences(self, first: list[int], second: list[int] | None = None) -> list[int]:
        """0 for the tokens of the first text with its special tokens, 1 for those of the second."""
        return [0] * (len(first) + 2) + ([] if second is None else [1] * (len(second) + 1))

    def get_special_tokens_mask(
        self, first: list[int], second: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where a special token stands, or would stand."""
        if already_has_special_tokens:
            return [int(index in self.all_special_ids) for index in first]
        return [1, *[0] * len(first), 1] + ([] if second is None else [*[0] * len(second), 1])

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text, or a pair, is given."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)

    @property
    def vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return self.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return self.backend_tokenizer.get_vocab()

    def add_tokens(self, tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Add whole-word tokens; returns how many were new. The model's embeddings need resizing then."""
        listed = [tokens] if isinstance(tokens, str) else list(tokens)
        add = self.backend_tokenizer.add_special_tokens if special_tokens else self.backend_tokenizer.add_tokens
        return add(listed)

    def add_special_tokens(self, tokens: dict[str, Any]) -> int:
        """Add tokens that are never split, ``{"additional_special_tokens": […]}``, or rename ``"sep_token"`` etc."""
        added = 0
        for role, value in tokens.items():
            if role == "additional_special_tokens":
                value = [str(token) for token in ([value] if isinstance(value, str) else value)]
                self.additional_special_tokens = value
            else:
                value = str(value)
                setattr(self, _one_of("special token", role, SPECIAL), value)
            added += self.add_tokens(value, special_tokens=True)
        self._configure()
        return added

    @property
    def vocab_size(self) -> int:
        """Word pieces in the vocabulary, added tokens not counted."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_token_id") and name.removesuffix("_id") in SPECIAL:
            return self.backend_tokenizer.token_to_id(getattr(self, name.removesuffix("_id")))
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def all_special_tokens(self) -> list[str]:
        """The five special tokens, and the additional ones."""
        return [*(getattr(self, name) for name in SPECIAL), *self.additional_special_tokens]

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids."""
        return [self.backend_tokenizer.token_to_id(token) for token in self.all_special_tokens]

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """Each special token by its role."""
        roles = (*SPECIAL, "additional_special_tokens")
        return {name: getattr(self, name) for name in roles if getattr(self, name)}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The special tokens and those added to the vocabulary, by their ids."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, do_lower_case={self.do_lower_case})"


class BertTokenizer(DistilBertTokenizer):
    """The same, with the segments that BERT tells apart: a call also returns ``token_type_ids``."""

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")


DistilBertTokenizerFast = DistilBertTokenizer
BertTokenizerFast = BertTokenizer


def _read(path: str | Path, reader: Any) -> Any:
    try:
        return reader(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong with a file
        raise CheckpointError(f"{path}: cannot be read as a tokenizer: {error}") from None


def _read_options(name_or_path: str | Path, filename: str, **where: Any) -> dict[str, Any]:
    """What a JSON file of the tokenizer says, nothing if it is not there."""
    path = hub.find_file(name_or_path, filename, **where)
    values = hub.read_json(path) if path else {}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """Configs store a special token as text, or as a mapping with the text as its content."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value["content"] if isinstance(value, dict) and "content" in value else value


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
    return value


def _strategy(name: str, value: bool | str, allowed: Sequence[str]) -> str:
    return _one_of(name, allowed[0 if value else -1] if isinstance(value, bool) else value, allowed)


def _lists(value: Any) -> Any:
    """Arrays and tensors, also in a list, as lists."""
    if isinstance(value, (list, tuple)):
        return [_lists(entry) for entry in value]
    return value if isinstance(value, (int, float, str)) else np.asarray(value).tolist()


def _pairs(text: Any, pair: Any, is_batch: bool, split: bool) -> list[Any]:
    """The batch as the library wants it: texts, or tuples of two."""
    texts = list(text) if is_batch else [text]
    if pair is None:
        rows = texts
    else:
        seconds = list(pair) if is_batch else [pair]
        if len(seconds) != len(texts):
            raise InputError(f"text_pair has {len(seconds)} texts, expected {len(texts)} like text")
        rows = list(zip(texts, seconds, strict=True))
    if not split and not all(isinstance(t, str) or (isinstance(t, (tuple, list)) and len(t) == 2) for t in rows):
        raise InputError("text: expected a str, a pair of them, or a list of either")
    return [tuple(row) if not split and isinstance(row, list) else row for row in rows]


def _as_tensor(name: str, rows: Any, framework: str) -> Any:
    _one_of("return_tensors", framework, ("np", "pt", "tf", "jax"))
    try:
        array = np.array(rows)
    except ValueError:
        raise InputError(f"{name}: rows of unequal length make no tensor; pass padding=True") from None
    if not array.size:  # numpy takes these for floats
        array = array.astype(np.int64)
    if framework == "np":
        return array
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: {array.dtype} makes no tensor, expected numbers")
    if array.dtype == np.float64:  # no framework's default
        array = array.astype(np.float32)
    module, function, extra = {
        "pt": ("torch", "from_numpy", "torch"),
        "tf": ("tensorflow", "constant", "tf"),
        "jax": ("jax.numpy", "asarray", "flax"),
    }[framework]
    require_backend(module.partition(".")[0], extra)
    return getattr(importlib.import_module(module), function)(array)


def _clean_up(text: str) -> str:
    for spaced in (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced[1:])
    return text.replace(" ' ", "'")
