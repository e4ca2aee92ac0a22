"""A client of NVFlare that sends back what it got."""

import nvflare.client as flare


def main() -> None:
    flare.init()
    while flare.is_running():
        model = flare.receive()
        flare.send(flare.FLModel(params=model.params, metrics={"accuracy": 0.0}))


if __name__ == "__main__":
    main()
