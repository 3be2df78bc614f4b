"""Would the comparison notice? Every classical fault, correct variants, and the smallest change that is still named.

    python benchmarks/faults.py                       # everything, both dtypes: hours on two cores
    taskset -c 0 python benchmarks/faults.py --dtype float32     # faster: a process to each dtype and core
    python benchmarks/faults.py --only faults --lengths 16

MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=16000000000 in the environment saves a quarter of the time:
glibc then keeps large blocks. A process takes up to 9 GB.

Writes outputs/faults_float32.json and outputs/faults_bfloat16.json, which notebooks/09_faults.ipynb shows. Sections:
clean: the untouched model on 24 prompts; faults: each on prompts of 16, 50 and 320 tokens, those that need scaled
RoPE on a random checkpoint; controls: the correct variants on 20 other prompts; sensitivity: four kinds of change,
bisected to the smallest that is named and to the smallest that allclose on the logits notices.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import entropix_lab as lab
from entropix_lab.proof.faults import CONTROLS, FAULTS
from entropix_lab.proof.passes import whole_taps
from entropix_lab.proof.report import ATOL, RTOL, VIEWS

SECTIONS = ("clean", "controls", "sensitivity", "faults")
LENGTHS = (16, 50, 320)
# 20 prompts: short ones, paragraphs, and a long one; the untouched model also gets repeated tokens and long runs
TWENTY = [16] * 15 + [50] * 4 + [320]


class Bench:
    def __init__(self, name, dtype, folder, lengths, faults):
        self.lengths, self.named = lengths, faults
        self.model = lab.load_model(name, dtype)
        self.reference = lab.load_reference(self.model.path, dtype, max_seq_len=640, max_batch_size=16)
        scaled = lab.demo.write_random_checkpoint(folder, lab.demo.TINY, dtype=dtype)
        self.scaled = lab.load_model(scaled, dtype), lab.load_reference(scaled, dtype)
        # starts of real texts, no text twice: one for the faults, 20 and 20 for the untouched model and the controls
        self.texts = lab.calibration.windows(self.model.tokenizer, 41 * 320, 320)

    def prompts(self, first):
        return [self.texts[first + i, :n] for i, n in enumerate(TWENTY)]

    def clean(self):
        words = self.texts[1]
        repeated = [np.full(200, words[0]), np.tile(words[:2], 50), np.repeat(words[:8], 25)]
        run = np.concatenate([words[:60], np.full(100, words[60]), words[60:100]])
        for tokens in [*self.prompts(1), *repeated, run]:
            report = lab.compare(self.model, self.reference, tokens)
            yield self._nearest(report, tokens[None], "none")

    def controls(self):
        prompts = self.prompts(21)
        batches, judged = [np.array([p for p in prompts if len(p) == n]) for n in LENGTHS], {}
        for control in (c for c in CONTROLS if c.exists_in(self.model)):
            reports = control.reports(self.model, self.reference, batches, judged)
            for tokens, report in zip(batches, reports, strict=True):
                yield self._nearest(report, tokens, control.name)

    def _nearest(self, report, tokens, name):
        row = max(report.rows, key=lambda r: r.limit_ratio)
        first = report.first_divergence
        views = {view: max(getattr(r, view).limit_ratio for r in report.rows) for view in VIEWS}
        return {
            "variant": name,
            "prompts": len(tokens),
            "tokens": tokens.shape[1],
            "found": first.tap if first else "none" if report.passed else "the logits by themselves",
            "limit_ratio": row.limit_ratio,
            "nearest": row.tap,
            "views": views,
        }

    def faults(self):
        for n in self.lengths:
            judged = {}
            for fault in (f for f in FAULTS if f.name in self.named):
                if fault.needs not in ("", "scaled RoPE", self.model.dtype):
                    continue
                model, reference = (self.model, self.reference) if fault.exists_in(self.model) else self.scaled
                text = self.texts[0] if model is self.model else np.random.default_rng(0).integers(0, 128, 320)
                common = judged.setdefault(model.name, {})
                report = next(fault.reports(model, reference, [text[:n]], common))
                yield fault.finding(model, report)._asdict() | {"tokens": n, "model": model.name, "seen": fault.seen}

    def sensitivity(self):
        tokens = self.texts[0, :50][None]
        meta = self.reference.logits(tokens)
        middle = self.model.config.n_layers // 2
        layer = self.model.weights.layer_weights[middle]
        sizes = np.linalg.norm(np.asarray(layer.w2, np.float32), axis=1), np.abs(np.asarray(layer.ffn_norm, np.float32))
        row, entry = (int(np.argsort(x)[len(x) // 2]) for x in sizes)  # those of median size

        def weights(name, index):
            def change(by):
                layers = list(self.model.weights.layer_weights)
                old = getattr(layer, name)
                new = (np.asarray(old[index], np.float64) * (1 + by)).astype(old.dtype)
                layers[middle] = layer._replace(**{name: old.at[index].set(new)})
                return replace(self.model, weights=self.model.weights._replace(layer_weights=tuple(layers)))

            return change

        def config(name):
            value = getattr(self.model.config, name)
            return lambda by: replace(self.model, config=replace(self.model.config, **{name: value * (1 + by)}))

        kinds = {
            f"one row of layers.{middle}.feed_forward.w2": (weights("w2", row), f"layers.{middle}.feed_forward.w2"),
            f"one gain of layers.{middle}.ffn_norm": (weights("ffn_norm", entry), f"layers.{middle}.ffn_norm"),
            "rope_theta": (config("rope_theta"), "layers.0.attention.xq_rope"),
            "norm_eps": (config("norm_eps"), "layers.0.attention_norm"),
        }
        for kind, (change, tap) in kinds.items():

            def named(by, change=change, tap=tap):
                where = lab.compare(change(by), self.reference, tokens).first_divergence
                return where is not None and where.tap == tap

            def noticed(by, change=change):
                return not np.allclose(whole_taps(change(by), tokens)[0]["output"], meta, rtol=RTOL, atol=ATOL)

            yield {"change": kind, "tap": tap, "named_from": smallest(named), "allclose_from": smallest(noticed)}


def smallest(notices, largest=64.0, least=2.0**-26):
    """The smallest power of two that notices(change) is true for, by bisection: it is taken to be true of all above.
    None where it is not true of the largest."""
    if not notices(largest):
        return None
    high, low = np.log2([largest, least]).astype(int)
    while high - low > 1:
        middle = (high + low) // 2
        high, low = (middle, low) if notices(2.0**middle) else (high, middle)
    return 2.0 ** int(high)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--only", nargs="+", default=SECTIONS, choices=SECTIONS)
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=LENGTHS, choices=LENGTHS, help="of the faults' prompts"
    )
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--names", nargs="+", default=names, choices=names, metavar="F01", help="some of the faults")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="a name or a folder")
    parser.add_argument(
        "--outputs", type=lambda x: Path(x).absolute(), default=lab.verdict.outputs_dir(), help="the folder to write to"
    )
    args = parser.parse_args()
    for dtype in args.dtype:
        with tempfile.TemporaryDirectory() as tmp:
            bench = Bench(args.model, dtype, Path(tmp) / "tiny-scaled", args.lengths, args.names)
            path = args.outputs / f"faults_{dtype}.json"
            data = json.loads(path.read_text()) if path.exists() else {}
            for section in args.only:
                started, rows = time.perf_counter(), []
                if section == "faults":
                    anew = lambda row: row["tokens"] in args.lengths and row["name"] in args.names
                    rows = [row for row in data.get(section, []) if not anew(row)]
                data |= {section: rows, "environment": lab.verdict.environment(dtype=dtype)}
                for row in getattr(bench, section)():
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    data[f"{section}_seconds"] = round(time.perf_counter() - started)
                    lab.verdict.write_json(path, data)


if __name__ == "__main__":
    main()
