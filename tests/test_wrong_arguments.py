"""What a user without a type checker passes by mistake ends in one line of ours, not in a trace of torch.

In a fresh interpreter, because in this one the run-time type checks would answer first.
"""

import json
import subprocess
import sys

SCRIPT = """
import json, timm, torch, mmattn
from mmattn.adapters.vit.timm import TimmOptions
model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
x = torch.rand(1, 3, 32, 32)
maps = mmattn.attend(model, inputs=x)
seen = mmattn.look(maps)
tries = {
    "look query 1.5": lambda: mmattn.look(maps, query=1.5),
    "look query tensor": lambda: mmattn.look(maps, query=torch.tensor(3)),
    "look query words": lambda: mmattn.look(maps, query=("a", "b")),
    "look layer 1.5": lambda: mmattn.look(maps, layer=1.5),
    "look layer None": lambda: mmattn.look(maps, layer=None),
    "look head 1.5": lambda: mmattn.look(maps, head=1.5),
    "look head True": lambda: mmattn.look(maps, head=True),
    "look head word": lambda: mmattn.look(maps, head="median"),
    "rollout start_layer": lambda: mmattn.rollout(maps, start_layer="blocks.1.attn"),
    "rollout residual_weight": lambda: mmattn.rollout(maps, residual_weight="a"),
    "look no maps": lambda: mmattn.look(3),
    "draw 3": lambda: mmattn.draw(3),
    "one channel": lambda: mmattn.attend(model, inputs=x[:, :1]),
    "no sample": lambda: mmattn.attend(model, inputs=x[:0]),
    "generate": lambda: mmattn.attend(model, inputs=x, generate=3),
    "size word": lambda: TimmOptions(size_px="a"),
    "size float": lambda: TimmOptions(size_px=225.0),
    "empty name": lambda: mmattn.attend("", inputs=x),
    "empty path": lambda: mmattn.attend(model, image=""),
    "overlay maps": lambda: mmattn.overlay(maps),
    "overlay list": lambda: mmattn.overlay([mmattn.look(maps)]),
    "overlay scale None": lambda: mmattn.overlay(seen, scale=None),
    "overlay scale 5": lambda: mmattn.overlay(seen, scale=5),
    "overlay scale pair": lambda: mmattn.overlay(seen, scale=(0, 1)),
    "overlay opacity": lambda: mmattn.overlay(seen, opacity=None),
    "overlay opacity True": lambda: mmattn.overlay(seen, opacity=True),
    "overlay row": lambda: mmattn.overlay(seen, row=0.5),
    "overlay contour": lambda: mmattn.overlay(seen, contour="x"),
    "links maps": lambda: mmattn.links(maps),
    "links list": lambda: mmattn.links([seen]),
    "links of a class token": lambda: mmattn.links(seen),
    "word_grid maps": lambda: mmattn.word_grid(maps),
    "word_grid of a class token": lambda: mmattn.word_grid(seen),
    "head_grid relevance": lambda: mmattn.head_grid(seen),
    "head_grid path": lambda: mmattn.head_grid(maps, layers="blocks.1.attn"),
    "head_grid paths": lambda: mmattn.head_grid(maps, layers=["blocks.1.attn"]),
    "side_by_side one": lambda: mmattn.side_by_side(mmattn.overlay(seen)),
    "side_by_side relevance": lambda: mmattn.side_by_side([seen]),
    "side_by_side cols": lambda: mmattn.side_by_side([mmattn.overlay(seen)], cols=0),
    "long name": lambda: mmattn.overlay(seen).save("y" * 300 + ".png"),
    "NUL": lambda: mmattn.overlay(seen).save("nul\\0.png"),
    "device": lambda: maps.save("/dev/null"),
    "device picture": lambda: mmattn.overlay(mmattn.look(maps)).save("/dev/null/x.png"),
}
said = {}
for name, job in tries.items():
    try:
        job()
        said[name] = ["nothing", ""]
    except mmattn.MmattnError as error:
        said[name] = ["ours", str(error)]
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def test_every_wrong_argument_gets_one_line_of_ours():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    said = json.loads(run.stdout.splitlines()[-1])
    assert len(said) == 43
    assert {name: kind for name, (kind, _) in said.items() if kind != "ours"} == {}
    assert {name: line for name, (_, line) in said.items() if "\n" in line or not line} == {}
