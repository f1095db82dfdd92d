"""The curve "more images no longer help" as an SVG file of its own."""

from __future__ import annotations

from apps.charts.svg import Axes, Axis, circle, line, svg
from calibration.stability import Stability

__all__ = ["stability_svg"]

_STYLE = (
    "<style>svg{background:#fff;font:11px sans-serif}text{fill:#5a6675}.label{fill:#1b2430}"
    ".grid{stroke:#dde2e8;fill:none}.tick{stroke:#5a6675}.line{fill:none;stroke:#1f6fd1;"
    "stroke-width:2}.mark{stroke:#c2570c;stroke-dasharray:4 3}.dot{fill:#1f6fd1}</style>"
)


def stability_svg(found: Stability) -> str:
    """Draw the noise above that of all images' scales over the number of images."""
    points = [(float(point.images), point.loss_db) for point in found.curve]
    most = max(0.1, *(loss for _, loss in points))
    frame = Axes(
        Axis("calibration images", points[0][0], max(points[-1][0], points[0][0] + 1)),
        Axis("noise above that of all images, dB", min(0.0, *(y for _, y in points)), most),
    )
    body = [line(frame, points, "")]
    body += [circle(frame, point, 3, "dot", f"{point[0]:g}: {point[1]:.3f} dB") for point in points]
    if found.enough is not None:
        ends = [(float(found.enough), frame.y.low), (float(found.enough), frame.y.high)]
        body.append(line(frame, ends, "mark", f"{found.enough} images are enough"))
    chart = svg("noise by the number of calibration images", frame, [_STYLE, *body])
    return chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
