"""Small stand-ins of the public files that the tables are made from, in their real formats and under their real names, and the server
that has them.

    with PublicServer(folder) as server:
        server.downloads          # configs/downloads.yaml with this server's address in the place of all others, and no checksums
        server.by_hand(folder)    # what a form or a licence gives: puts the files where the listing of scripts/reproduce.py says

Which pictures are there is a table of numbers, so that one photograph is in several data sets as it is in the real ones.
"""

import gzip
import io
import json
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
import yaml
from PIL import Image

from model.extractors.butd.faster_rcnn import FasterRcnn
from model.extractors.butd.rcnn_config import read_config
from tests.model.extractors.test_faster_rcnn import SMALL, randomise
from tests.original_weights import PRETRAINED, base_shapes, random_tensors, tie

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["a", "red", "blue", "old", "dog", "cat", "man", "tree", "runs", "sits", "under", "near", "the", "house", "ein", "une", "pes", "犬", "狗"]
FLICKR = {"train": range(1000092795, 1000092807), "val": range(1000092807, 1000092813), "test": range(1000092813, 1000092913)}
COCO = {"train": range(1, 13), "restval": range(101, 107), "val": range(201, 301), "test": range(1001, 2001)}  # test: folds of 1,000
GENOME = range(1, 61)
TINY_BERT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 48, "max_position_embeddings": 80}


def caption(number: int) -> str:
    """Some words that go with a picture's number."""
    chosen = np.random.default_rng(number).choice(16, 5)
    return " ".join(WORDS[i] for i in chosen)


def photo(number: int, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((32, 24), Image.Resampling.NEAREST).save(buffer, form)
    return buffer.getvalue()


def coco_name(number: int) -> str:
    folder = "train2014" if number in COCO["train"] else "val2014"
    return f"{folder}/COCO_{folder}_{number:012d}.jpg"


def zipped(files: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes | str], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


# ---- captions --------------------------------------------------------------------------------------------------------


def karpathy() -> dict[str, str]:
    """caption_datasets.zip: dataset_flickr30k.json, dataset_coco.json."""

    def images(pictures: list[tuple[str, str, dict]]) -> list[dict]:
        found = []
        for n, (name, split, more) in enumerate(pictures):
            text = caption(n)
            sentence = {"tokens": text.split(), "raw": f"{text.capitalize()}.", "imgid": n, "sentid": n}
            found.append({"sentids": [n], "imgid": n, "sentences": [sentence], "split": split, "filename": name} | more)
        return found

    flickr = [(f"{number}.jpg", split, {}) for split, numbers in FLICKR.items() for number in numbers]
    coco = []
    for split, numbers in COCO.items():
        for number in numbers:
            folder, name = coco_name(number).split("/")
            coco.append((name, split, {"filepath": folder, "cocoid": number}))
    return {
        f"dataset_{name}.json": json.dumps({"dataset": name, "images": images(pictures)})
        for name, pictures in (("flickr30k", flickr), ("coco", coco))
    }


def coco_annotations() -> dict[str, str]:
    """annotations_trainval2014.zip; the photograph of COCO's picture 1 is one of Flickr30k's test."""
    files = {}
    for folder, splits in (("train2014", ["train"]), ("val2014", ["restval", "val", "test"])):
        numbers = [number for split in splits for number in COCO[split]]
        flickr = {number: FLICKR["test"][0] if number == 1 else 5_000_000 + number for number in numbers}
        images = [
            {
                "license": 1, "file_name": coco_name(n).split("/")[1], "height": 24, "width": 32, "id": n,
                "coco_url": f"http://images.cocodataset.org/{coco_name(n)}", "date_captured": "2013-11-14 16:28:13",
                "flickr_url": f"http://farm9.staticflickr.com/8/{flickr[n]}_0123456789_z.jpg",
            }
            for n in numbers
        ]  # fmt: skip
        captions = [{"image_id": n, "id": 10 * n, "caption": caption(n)} for n in numbers]
        files[f"annotations/captions_{folder}.json"] = json.dumps({"info": {}, "images": images, "licenses": [], "annotations": captions})
    return files


def genome_annotations() -> dict[str, list[dict]]:
    """region_descriptions.json and image_data.json; picture 1 is of COCO's test, 2 of Flickr30k."""
    regions, images = [], []
    for n in GENOME:
        region = {"region_id": 100 * n, "width": 8, "height": 8, "image_id": n, "phrase": caption(n), "x": 1, "y": 1}
        regions.append({"id": n, "regions": [region, region | {"region_id": 100 * n + 1, "phrase": caption(n + 500)}]})
        known = {1: {"coco_id": COCO["test"][0], "flickr_id": None}, 2: {"coco_id": None, "flickr_id": FLICKR["train"][0]}}
        images.append({"image_id": n, "url": genome_url(n), "width": 32, "height": 24} | known.get(n, {"coco_id": None, "flickr_id": None}))
    return {"region_descriptions": regions, "image_data": images}


def genome_url(number: int) -> str:
    return f"https://cs.stanford.edu/people/rak248/VG_100K{'_2' * (number % 2)}/{number}.jpg"


def multi30k() -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {}
    for split, numbers in (("train", FLICKR["train"]), ("val", FLICKR["val"]), ("test_2016_flickr", FLICKR["test"])):
        listed = "".join(f"{number}.jpg\n" for number in numbers)
        data, five = "dataset-master/data", split.removesuffix("_flickr")
        files[f"{data}/task1/image_splits/{split}.txt"] = listed
        files[f"{data}/task2/image_splits/{five}_images.txt"] = listed
        for language in ("en", "de", "fr", "cs"):
            lines = "".join(f"{language} {caption(number)}\n" for number in numbers)
            files[f"{data}/task1/raw/{split}.{language}.gz"] = gzip.compress(lines.encode())
            for n in range(1, 6) if language in ("en", "de") else ():
                files[f"{data}/task2/raw/{five}.{n}.{language}.gz"] = gzip.compress(lines.encode())
    return files


def stair() -> dict[str, str]:
    files = {}
    for split, groups in (("train", ["train"]), ("val", ["restval", "val", "test"])):
        numbers = [number for group in groups for number in COCO[group]]
        images = [{"license": 1, "file_name": coco_name(n).split("/")[1], "id": n} for n in numbers]
        captions = [{"image_id": n, "id": n, "caption": f"犬 {caption(n)}"} for n in numbers]
        for form in ("", "_tokenized"):
            files[f"stair_captions_v1.2_{split}{form}.json"] = json.dumps({"images": images, "annotations": captions})
    return files


def coco_cn() -> dict[str, str]:
    splits = {"train": [*COCO["train"][:5], *COCO["restval"]], "val": COCO["val"][:3], "test": COCO["test"][:12]}
    names = {split: [coco_name(n).split("/")[1].removesuffix(".jpg") for n in numbers] for split, numbers in splits.items()}
    folder = "coco-cn-version1805v1.1"
    files = {f"{folder}/coco-cn_{split}.txt": "".join(f"{name}\n" for name in own) for split, own in names.items()}
    lines = "".join(f"{name}#0\t狗 {caption(n)}\n" for n, name in enumerate(name for own in names.values() for name in own))
    return files | {f"{folder}/imageid.human-written-caption.txt": lines}


# ---- weights ---------------------------------------------------------------------------------------------------------


def bert_files(folder: Path, layers: int = 1) -> dict[str, bytes]:
    """The files of a BERT on Hugging Face's hub; [CLS] is word 101 as in the real ones."""
    unused = [f"[unused{n}]" for n in range(1, 100)]
    letters = [*"abcdefghijklmnopqrstuvwxyz.", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(word for word in WORDS if len(word) > 1 or word > "z")]
    torch.manual_seed(layers)
    sizes = TINY_BERT | {"num_hidden_layers": layers, "vocab_size": len(words), "initializer_range": 0.2}
    transformers.BertForPreTraining(transformers.BertConfig(**sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    tokenizers.BertWordPieceTokenizer({word: n for n, word in enumerate(words)}, lowercase=False).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "model_max_length": 80}))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def uniter_file(folder: Path, vocab_size: int, features: int, labels: int) -> bytes:
    """uniter-base.pt, as torch.save wrote it: the encoder under its prefix, and the heads of pre-training."""
    size = {768: 64, 3072: 48, 28996: vocab_size, 512: 80, 2048: features, 1601: labels}
    shapes = {
        name.replace("bert.img_model.bert.", "uniter."): [size.get(n, n) for n in shape]
        for name, shape in base_shapes(PRETRAINED).items()
        if "txt_model" not in name and "encode_proj" not in name and not re.search(r"layer\.([1-9]|1\d)\.", name)
    }
    torch.save(tie({name: 0.2 * tensor for name, tensor in random_tensors(shapes).items()}), folder / "uniter-base.pt")
    return (folder / "uniter-base.pt").read_bytes()


def detector_files(folder: Path) -> dict[str, bytes]:
    small = SMALL | {
        "INPUT": {"FORMAT": "BGR", "MIN_SIZE_TEST": 32, "MAX_SIZE_TEST": 64},
        "PROPOSAL_GENERATOR": {"HIDDEN_CHANNELS": 12, "MIN_SIZE": 0},
        "RPN": {"NMS_THRESH": 0.7, "PRE_NMS_TOPK_TEST": 12, "POST_NMS_TOPK_TEST": 6},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(small))
    model = FasterRcnn(read_config(folder / "config.yaml"))
    randomise(model)
    for parameter in model.proposal_generator.rpn_head.anchor_deltas.parameters():
        parameter.data.zero_()  # proposals are the anchors: some region is found in every picture
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the server ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.asked.add(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


class PublicServer:
    """A server with all public files, and what is given by hand.

    Args:
        folder: to work in; downloads.yaml is written there
    """

    def __init__(self, folder: Path):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.files, self._server.asked = {}, set()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._files_by_path = self._make_files(folder)
        self.downloads = folder / "downloads.yaml"
        self.downloads.write_text(yaml.safe_dump(self._sources()), encoding="utf-8")

    def __enter__(self) -> "PublicServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _sources(self) -> dict:
        """Every address with this server's instead of its own; a file that is not here is an error of the server."""
        sources = yaml.safe_load((ROOT / "configs/downloads.yaml").read_text(encoding="utf-8"))
        for source in sources.values():
            for file in source.get("files", []):
                path = re.sub(r"^https?://[^/]+", "", file["url"])
                if path in self._files_by_path:
                    self._server.files[path] = self._files_by_path[path]
                file["url"] = self.url + path
                file.pop("checksum", None), file.pop("bytes", None)
        return sources

    def _make_files(self, folder: Path) -> dict[str, bytes]:
        """Path of each address → its content."""
        genome = genome_annotations()
        in_folder = {split: {coco_name(n): photo(n) for n in numbers} for split, numbers in COCO.items()}
        found = {
            "/people/karpathy/deepimagesent/caption_datasets.zip": zipped(karpathy()),
            "/annotations/annotations_trainval2014.zip": zipped(coco_annotations()),
            "/annotations/annotations_trainval2017.zip": zipped({"annotations/captions_val2017.json": "{}"}),
            "/zips/train2014.zip": zipped(in_folder["train"]),
            "/zips/val2014.zip": zipped(in_folder["restval"] | in_folder["val"] | in_folder["test"]),
            "/multi30k/dataset/archive/refs/heads/master.tar.gz": tarred(multi30k()),
            "/STAIR-Lab-CIT/STAIR-captions/raw/master/stair_captions_v1.2.tar.gz": tarred(stair()),
            "/datasets/AIMClab-RUC/COCO-CN/resolve/main/coco-cn-version1805v1.1.tar.gz": tarred(coco_cn()),
            "/~vo9/sbucaptions/sbu-captions-all.tar.gz": tarred({"sbu-captions-all.json": json.dumps(self._sbu())}),
        }
        for name, content in genome.items():
            found[f"/~ranjay/visualgenome/data/dataset/{name}.json.zip"] = zipped({f"{name}.json": json.dumps(content)})
        for archive, place in (("images", 1), ("images2", 0)):
            pictures = {re.sub(".*rak248/", "", genome_url(n)): photo(10_000 + n) for n in GENOME if n % 2 == place}
            found[f"/people/rak248/VG_100K_2/{archive}.zip"] = zipped(pictures)
        models = {"google-bert/bert-base-cased": 1, "google-bert/bert-large-cased": 2, "google-bert/bert-base-multilingual-cased": 1}
        for number, (name, layers) in enumerate(models.items()):
            (folder / f"bert{number}").mkdir()
            found |= {f"/{name}/resolve/main/{file}": each for file, each in bert_files(folder / f"bert{number}", layers).items()}
        (folder / "detector").mkdir()
        detector = detector_files(folder / "detector")
        found |= {f"/unc-nlp/frcnn-vg-finetuned/resolve/main/{file}": each for file, each in detector.items()}
        words = found["/google-bert/bert-base-cased/resolve/main/vocab.txt"].count(b"\n")
        self._uniter = uniter_file(folder, words, 8 * SMALL["RESNETS"]["RES2_OUT_CHANNELS"], SMALL["ROI_HEADS"]["NUM_CLASSES"] + 1)
        return found

    def _pictures_of_the_web(self, name: str, count: int) -> list[str]:
        """Addresses of pictures, a third of which are gone."""
        for n in range(count):
            if n % 3:
                self._server.files[f"/{name}/{n}.jpg"] = photo(20_000 + n)
        return [*(f"{self.url}/{name}/{n}.jpg" for n in range(count)), "http://127.0.0.1:9/dead.jpg"]

    def _conceptual_captions(self, name: str) -> bytes:
        return "".join(f"{caption(n)}\t{url}\n" for n, url in enumerate(self._pictures_of_the_web(name, 18))).encode()

    def _sbu(self) -> dict[str, list[str]]:
        urls = self._pictures_of_the_web("sbu", 90)
        return {"image_urls": urls, "captions": [caption(n) for n in range(len(urls))], "user_ids": ["1@N00"] * len(urls)}

    def by_hand(self, line: str) -> None:
        """Do what a line of the listing says: put the file that its form gives at the path that it names."""
        files = {
            "flickr30k-images.tar": lambda: tarred(
                {f"flickr30k-images/{number}.jpg": photo(number) for numbers in FLICKR.values() for number in numbers}, "w:"
            ),
            "Train_GCC-training.tsv": lambda: self._conceptual_captions("cc"),
            "Validation_GCC-1.1.0-Validation.tsv": lambda: self._conceptual_captions("cc_val"),
            "uniter-base.pt": lambda: self._uniter,
        }
        path = Path(re.search(r"at\s+(\S+)$", line)[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[path.name]())
