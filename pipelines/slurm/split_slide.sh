#!/usr/bin/env bash
# One large slide over several jobs: calibrate -> fit[array] -> blend -> render[array] -> finalize.
#
#   pipelines/slurm/split_slide.sh SLIDE OUT.ome.zarr PARTS [options of `wsi-pgdips run`]
#   SBATCH_PARTITION=gpu SBATCH_GRES=gpu:1 pipelines/slurm/split_slide.sh a.svs a.ome.zarr 8 --preset paper
#
# A job starts when the one before has ended, successfully or not. It checks that the work before is
# complete, and ends at once if it is not: none is left waiting. To resume, repeat the command.
# The notes in run_slide.sbatch on `wsi-pgdips`, WSI_PGDIPS and requeueing apply here too.
# RESOURCES holds further options of sbatch, such as RESOURCES="--mem=32G --time=8:00:00".
set -euo pipefail

if [ "$#" -lt 3 ]; then
  echo "usage: $(basename "$0") SLIDE OUT.ome.zarr PARTS [options of wsi-pgdips run]" >&2
  exit 2
fi
SLIDE=$(realpath "$1")
OUT=$(realpath -m "$2")
PARTS=$3
shift 3
read -r -a more <<<"${RESOURCES:---cpus-per-task=4 --mem=16G --time=04:00:00}"

after=
submit() { # stage, further options of sbatch
  local stage=$1 part=
  shift
  # a share of the blocks, if the stage is an array; expanded in the job
  [ "$#" -eq 0 ] || part="--part \"\$SLURM_ARRAY_TASK_ID/$PARTS\""
  local script
  script=$(printf '#!/usr/bin/env bash\nexec %q run %q %q --stage %s %s%s\n' \
    "${WSI_PGDIPS:-wsi-pgdips}" "$SLIDE" "$OUT" "$stage" "$part" "$options")
  after=$(sbatch --parsable --job-name="wsi-pgdips-$stage" --ntasks=1 --requeue --open-mode=append \
    --signal=B:USR1@120 --kill-on-invalid-dep=yes ${after:+--dependency=afterany:$after} \
    "${more[@]}" "$@" <<<"$script")
  after=${after%%;*}
  echo "$stage: job $after"
}
options=
[ "$#" -eq 0 ] || options=$(printf ' %q' "$@")

submit calibrate
submit fit --array="1-$PARTS"
submit blend
submit render --array="1-$PARTS"
submit finalize
