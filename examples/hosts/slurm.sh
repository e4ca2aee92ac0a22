#!/bin/bash
# A run on all nodes of a Slurm job: an agent on each but the first, which drives.
#
#   sbatch --nodes=4 --exclusive examples/hosts/slurm.sh --clients=400 --profile=4g
#
# Words after the script's name are those of `wiretune launch`; WIRETUNE is the command, where it is not
# on PATH. Nodes reach one another at the addresses of their names, at PORT and at ports that are free.
#SBATCH --job-name=wiretune
#SBATCH --ntasks-per-node=1
set -euo pipefail

port=${PORT:-7400}
read -ra wiretune <<<"${WIRETUNE:-wiretune}"
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if ((${#hosts[@]} < 2)); then
    echo "slurm.sh: the job has ${#hosts[@]} node, a run on several hosts takes two: sbatch --nodes=2" >&2
    exit 2
fi
others=("${hosts[@]:1}")
# Of this run alone; srun hands it to the agents in their environment.
WIRETUNE_TOKEN=$(openssl rand -hex 32)
export WIRETUNE_TOKEN PORT="$port"

# An agent listens at its node's own address alone, and ends when its step does.
srun --nodes="${#others[@]}" --ntasks="${#others[@]}" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    --nodelist="$(IFS=,; echo "${others[*]}")" \
    bash -c 'exec "$@" agent --listen="$SLURMD_NODENAME:$PORT"' agent "${wiretune[@]}" &
agents=$!
trap 'kill "$agents" 2>/dev/null; wait "$agents" 2>/dev/null || true' EXIT

for host in "${others[@]}"; do
    for _ in $(seq 60); do
        if (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; then
            continue 2
        fi
        kill -0 "$agents" 2>/dev/null || { echo "slurm.sh: the agents have ended" >&2; exit 1; }
        sleep 1
    done
    echo "slurm.sh: no agent listens at $host:$port" >&2
    exit 1
done

with_ports=("${others[@]/%/:$port}")
"${wiretune[@]}" launch --hosts="$(IFS=,; echo "${hosts[0]},${with_ports[*]}")" "$@"
