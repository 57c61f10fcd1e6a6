"""Serve the shipped digits student, ask it by OpenAI's client for every class, save the picture, stop it."""

import argparse
import base64
import io
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
from PIL import Image

EACH = 8  # pictures of a class
ENLARGED = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    command = [sys.executable, "-m", "fdistill", "serve", "digits-student", "--port", "0"]
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = service.stderr.readline()
        place = re.search(r"http://\S+", line)
        if place is None:
            raise RuntimeError(f"the service did not start: {line}")
        print(f"the service listens on {place[0]}")
        with openai.OpenAI(base_url=f"{place[0]}/v1", api_key="none") as client:
            (model,) = client.models.list()
            picture = Image.new("L", (8 * EACH * ENLARGED, 80 * ENLARGED))
            for label in range(10):
                found = client.images.generate(model=model.id, prompt=str(label), n=EACH, extra_body={"seed": label})
                for index, each in enumerate(found.data):
                    image = Image.open(io.BytesIO(base64.b64decode(each.b64_json)))
                    cell = image.resize((8 * ENLARGED, 8 * ENLARGED), Image.Resampling.NEAREST)
                    picture.paste(cell, (8 * ENLARGED * index, 8 * ENLARGED * label))
        out.mkdir(parents=True, exist_ok=True)
        picture.save(out / "digits.png")
        print(f"{model.id} made {EACH} pictures of each of 10 classes: {out / 'digits.png'}")
        service.send_signal(signal.SIGTERM)
        status = service.wait(60)
        print(f"stopped by SIGTERM, exit status {status}")
        return status
    finally:
        service.kill()


if __name__ == "__main__":
    sys.exit(main())
