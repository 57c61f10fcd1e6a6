"""What the pixel Fréchet distance of validation and StudentDistance costs, at the sizes of real images.

    python tools/benchmark_pixel_distance.py --threads 1

Seconds (processor time) of one comparison of n random images with n real ones whose moments are known: summing up the
generated side, and the distance itself; medians of --repeats.
"""

import argparse
import statistics
import time

import torch

from fdistill.evaluation.metrics.pixel_distance import PixelMoments, pixel_frechet_distance

SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"n = {options.n:,}, {options.threads} thread(s), seconds of processor time")
    print("| shape | sums of the generated side | distance |\n|---|---|---|")
    for shape in SHAPES:
        real = PixelMoments(shape)
        images = torch.rand(options.n, *shape)
        real.add(images)
        summed, compared = [], []
        for _ in range(options.repeats):
            started, moments = time.process_time(), PixelMoments(shape)
            for batch in images.split(options.batch):
                moments.add(batch)
            halfway = time.process_time()
            pixel_frechet_distance(moments.total(), real.total(), shape)
            summed.append(halfway - started)
            compared.append(time.process_time() - halfway)
        print(f"| {'x'.join(map(str, shape))} | {statistics.median(summed):.3f} | {statistics.median(compared):.3f} |")


if __name__ == "__main__":
    main()
