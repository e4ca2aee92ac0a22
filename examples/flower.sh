# The server's side of Flower: a SuperLink, an app that averages, and Flower's own count of bytes.
# Each round brings an array of 1 MB to every client and back.
export FLWR_HOME="$WIRETUNE_DIR"
printf '[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:8000"\ninsecure = true\n' \
  > "$FLWR_HOME/config.toml"
flower-superlink --insecure --host=0.0.0.0 --disable-runtime-dependency-installation &
until flwr list here > /dev/null 2>&1; do sleep 0.2; done
clients=$((WIRETUNE_SIZE - 1))
flwr run benchmarks/peers/flower_app here --stream \
  --run-config "rounds=3 bytes=1000000 clients=$clients out='$WIRETUNE_DIR/times.json'"
flwr list here --format=json
