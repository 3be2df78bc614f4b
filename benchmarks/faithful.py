"""How far each deviation of the original entropix moves the logits of the demo model: `python benchmarks/faithful.py`.

24 tokens of a text as a prompt, the other 21 one by one, each given; beside the same forward without the deviation.
"""

import argparse

import entropix_lab as lab
from entropix_lab.faithful import forward

TEXT = (
    "When the kettle boils, the water has reached one hundred degrees. At that moment the steam that leaves it burns "
    "more than the water does, because it gives up its heat of vaporisation when it condenses on the skin."
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="a name or a folder")
    parser.add_argument("--dtype", nargs="+", default=("float32", "bfloat16"), choices=("float32", "bfloat16"))
    args = parser.parse_args()
    print(lab.verdict.environment())
    for dtype in args.dtype:
        model = lab.load_model(args.model, dtype)
        tokens = model.encode(TEXT)
        after = lambda m, functions, gap=0: forward.teacher_forced(m, tokens, 24, functions, gap)[1]  # noqa: B023
        right = after(model, {})
        print(f"{dtype:28} max abs   mean KL  changed")
        for d in forward.DEVIATIONS:
            if d.needs in ("", dtype):
                print(f"{d.name:26} {forward.effect(right, after(d.of(model), d.replace))}")
        original = forward.changed(model, config=forward.original_config(model.config))
        for revision in ("cceeb84", "9d41be6"):
            for gap in (0, 1):
                found = after(original, forward.REVISIONS[revision], gap)
                print(f"{f'{revision}, gap of {gap}':26} {forward.effect(right, found)}")
