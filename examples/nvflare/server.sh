# The server's side of NVFlare: kits for all, a server, and a job that is submitted to it.
kits="$WIRETUNE_DIR/kits"
nvflare provision -p examples/nvflare/project.yml -w "$kits" --force
bash "$kits/averaging/prod_00/server/startup/sub_start.sh" --once &
python examples/nvflare/job.py "$kits/averaging/prod_00/admin@nvidia.com" "$WIRETUNE_DIR/model.npy"
