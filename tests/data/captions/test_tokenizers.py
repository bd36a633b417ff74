"""Tokenizers: the ids of Hugging Face's, without importing transformers; settings, special tokens, files that are none."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput

ROOT = Path(__file__).parents[3]
WORDS = "a the dog dogs cat runs on beach ein hund am strand . , ' Hund Strand".split()
VOCABULARY = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused2]", *WORDS, "##s", "##ning", "run"]
MORE = ["cafe", "café", "Café", "naïve", "naive", "狗", "海", "##é", "##e", "?", "[", "]", "cls", "mask", "-", "x", "##x"]
TEXTS = [
    "A dog runs on the beach.",
    "Café, CAFÉ cafe\u0301 naïve?",
    "ein Hund am Strand's dogs",
    "狗在海 the狗 dog",
    "zyzzyva 🐶 \u200b dog\u00a0cat\tbeach\x00",
    "[CLS] a [MASK]dog [mask] [SEP][PAD] [UNK] <mask> </s>",
    "x" * 120 + " dog-cat",
    "",
    "   ",
    "a dog " * 300,
]
read = CaptionTokenizer.from_pretrained


def pieces(tokenizer, text):
    return tokenizer.encode([text])[0].tokens


def write_vocabulary(path, words=VOCABULARY):
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return path


# ---- the same as Hugging Face's --------------------------------------------------------------------------------------


def assert_same(ours, theirs):
    names = ("unk", "cls", "sep", "pad", "mask")
    assert [getattr(ours, f"{n}_id") for n in names] == [getattr(theirs, f"{n}_token_id") for n in names]
    assert ours.vocabulary() == theirs.get_vocab() and len(ours) == len(theirs)
    expected = theirs(TEXTS, add_special_tokens=False)
    assert [e.ids for e in ours.encode(TEXTS)] == expected["input_ids"]
    assert [ours.input_ids(text) for text in TEXTS] == expected["input_ids"]
    assert [e.offsets for e in ours.encode(TEXTS)] == [e.offsets for e in expected.encodings]
    whole = theirs(TEXTS[0])["input_ids"]
    assert [ours.cls_id, *ours.input_ids(TEXTS[0]), ours.sep_id] == whole
    assert ours.decode(whole) == theirs.decode(whole)


def assert_same_again(ours, folder):
    """Also what is stored and read again, by either."""
    ours.save_pretrained(folder)
    assert_same(read(folder), AutoTokenizer.from_pretrained(folder))
    assert read(folder).backend.to_str() == ours.backend.to_str()


@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_vocabularies(tmp_path, lowercase):
    words = [*VOCABULARY, *MORE]
    theirs = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)}, do_lower_case=lowercase)
    ours = read(write_vocabulary(tmp_path / "vocab.txt", words), lowercase)
    assert_same(ours, theirs)
    assert_same_again(ours, tmp_path / "again")
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(read(tmp_path / "theirs"), AutoTokenizer.from_pretrained(tmp_path / "theirs"))
    assert_same(read(tmp_path / "theirs", lowercase), theirs)
    # a folder of before there was tokenizer.json
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "vocab.txt", tmp_path / "old")
    (tmp_path / "old" / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    assert_same(read(tmp_path / "old"), theirs)


@pytest.mark.parametrize("settings", [{"strip_accents": False}, {"tokenize_chinese_chars": False}])
def test_settings_beside_a_vocabulary(tmp_path, settings):
    words = [*VOCABULARY, *MORE]
    theirs = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)}, do_lower_case=True, **settings)
    write_vocabulary(tmp_path / "vocab.txt", words)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, **settings}))
    assert_same(read(tmp_path), theirs)
    plain = read(tmp_path / "vocab.txt", lowercase=True)
    assert [plain.input_ids(text) for text in TEXTS] != [read(tmp_path).input_ids(text) for text in TEXTS]


def byte_level(folder):
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    raw.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=names, show_progress=False, vocab_size=400))
    content = json.loads(raw.to_str())["model"]
    return transformers.RobertaTokenizer(
        vocab=content["vocab"], merges=[tuple(pair) for pair in content["merges"]]
    )


def sentence_pieces(folder):
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(special_tokens=names, unk_token="<unk>", vocab_size=90, show_progress=False)
    raw.train_from_iterator(TEXTS, trainer)
    vocab = [tuple(entry) for entry in json.loads(raw.to_str())["model"]["vocab"]]
    return transformers.XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])


@pytest.mark.parametrize("make", [byte_level, sentence_pieces])
def test_other_families(tmp_path, make):
    make(tmp_path).save_pretrained(tmp_path / "theirs")
    ours = read(tmp_path / "theirs")
    assert_same(ours, AutoTokenizer.from_pretrained(tmp_path / "theirs"))
    assert_same_again(ours, tmp_path / "again")
    assert ours.word_range()[0] > 3


def test_a_byte_level_vocabulary_without_tokenizer_json(tmp_path):
    content = json.loads(byte_level(tmp_path).backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in content["merges"]))
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    ours = read(tmp_path)
    assert_same(ours, AutoTokenizer.from_pretrained(tmp_path))
    assert_same_again(ours, tmp_path / "again")


def test_a_stored_length_limit_is_not_applied(tmp_path):
    raw = read(write_vocabulary(tmp_path / "vocab.txt")).backend
    raw.enable_truncation(5)
    raw.enable_padding(length=20)
    (tmp_path / "cut").mkdir()
    raw.save(str(tmp_path / "cut" / "tokenizer.json"))
    assert len(read(tmp_path / "cut").input_ids("a dog " * 50)) == 100


def test_transformers_is_not_imported(tmp_path):
    read(write_vocabulary(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "saved")
    program = (
        "import sys\nfrom data.captions.tokenizers import CaptionTokenizer\n"
        f"for name in ('saved', 'vocab.txt'): CaptionTokenizer.from_pretrained({str(tmp_path)!r} + '/' + name)\n"
        "assert not {'transformers', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


# ---- settings, and what is none --------------------------------------------------------------------------------------


def test_lowercase_is_guessed_told_or_configured(tmp_path):
    lower = write_vocabulary(tmp_path / "lower.txt", [w for w in VOCABULARY if w == w.lower() or w.startswith("[")])
    cased = write_vocabulary(tmp_path / "cased.txt")
    ids = {name: VOCABULARY.index(name) for name in VOCABULARY}
    assert pieces(read(cased), "Hund hund") == ["Hund", "hund"]
    assert pieces(read(cased, lowercase=True), "Hund hund Ä") == ["hund", "hund", "a"]
    assert pieces(read(lower), "DOGS.") == ["dogs", "."]
    assert pieces(read(lower, lowercase=False), "DOGS.") == ["[UNK]", "."]
    assert read(cased).input_ids("dog cat") == [ids[w] for w in ("dog", "cat")]
    (tmp_path / "bert").mkdir()
    shutil.copy(lower, tmp_path / "bert" / "vocab.txt")
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert pieces(read(tmp_path / "bert"), "DOGS.") == ["[UNK]", "."]
    read(cased).save_pretrained(tmp_path / "saved")
    assert pieces(read(tmp_path / "saved", lowercase=False), "Hund") == ["Hund"]
    with pytest.raises(BadInput, match="saved: its tokenizer has lowercase False, not True"):
        read(tmp_path / "saved", lowercase=True)


def test_vocabulary_lines_are_cut_at_newlines_only(tmp_path):
    words = [*VOCABULARY, "\u2028", "\x85", "zebra"]  # str.splitlines would cut at both, and shift what follows
    assert read(write_vocabulary(tmp_path / "v.txt", words)).vocabulary()["zebra"] == len(words) - 1


def test_bad_tokenizers(tmp_path):
    with pytest.raises(BadInput, match="absent: no tokenizer"):
        read(tmp_path / "absent")
    with pytest.raises(BadInput, match=r"objects.txt: no BERT vocabulary, it lacks \[UNK\]"):
        read(write_vocabulary(tmp_path / "objects.txt", WORDS))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="broken: cannot be loaded as a tokenizer"):
        read(tmp_path / "broken")
    capitals = write_vocabulary(tmp_path / "capitals.txt", [*VOCABULARY[:7], "DOG", "CAT", "BEACH", "HUND"])
    assert pieces(read(capitals), "DOG CAT") == ["DOG", "CAT"]
    with pytest.raises(BadInput, match=r"capitals.txt: the tokenizer does not tell words apart"):
        read(capitals, lowercase=True)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="binary: not UTF-8 text"):
        read(tmp_path / "binary")
    (tmp_path / "maskless").mkdir()
    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4, "b": 5}, unk_token="[UNK]"))
    raw.save(str(tmp_path / "maskless" / "tokenizer.json"))
    with pytest.raises(BadInput, match="maskless: the tokenizer has no mask_token"):
        read(tmp_path / "maskless")


def test_word_range_of_bert_and_of_specials_at_the_end(tmp_path):
    assert read(write_vocabulary(tmp_path / "v.txt")).word_range() == (7, len(VOCABULARY))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "[MASK]"]
    assert read(write_vocabulary(tmp_path / "v.txt", words)).word_range() == (4, 4 + len(WORDS))


def test_a_vocabulary_with_a_byte_order_mark_and_windows_lines(tmp_path):
    (tmp_path / "plain.txt").write_bytes("".join(f"{word}\n" for word in VOCABULARY).encode())
    (tmp_path / "windows.txt").write_bytes(("\ufeff" + "".join(f"{word}\r\n" for word in VOCABULARY)).encode())
    assert read(tmp_path / "windows.txt").vocabulary() == read(tmp_path / "plain.txt").vocabulary()


def test_half_a_surrogate_pair_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"the text 'a \\ud83d' is no UTF-8 text"):
        read(write_vocabulary(tmp_path / "vocab.txt")).encode(["a dog", "a \ud83d"])


@pytest.mark.parametrize("number", [2**31, 100_000])
def test_an_id_far_beyond_the_words_is_one_line(tmp_path, number):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs"]) + "\n")
    CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt").save_pretrained(tmp_path / "own")
    path = tmp_path / "own/tokenizer.json"
    written = json.loads(path.read_text())
    written["model"]["vocab"]["dog"] = number
    path.write_text(json.dumps(written))
    with pytest.raises(BadInput, match=rf"tokenizer\.json: the id of 'dog' is {number}, of 8 words"):
        CaptionTokenizer.from_pretrained(tmp_path / "own")
