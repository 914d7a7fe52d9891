#!/bin/sh
# Runs what docs/results.md reports, into out/results: tools/results.sh [PART...], all parts without a name.
# Killed, it goes on where it stopped. Prompts of seeds 901 to 999 were looked at while milr was developed; those of
# seeds from 31001 on were only for reports, but share wordings and meanings with them. scenes-2 shares none
# (python -m milr.lab.report_set).
set -eu
cd "$(dirname "$0")/.."

prompts=scenes
bench() { # NAME OPTIONS METHOD...
  name=$1 options=$2
  shift 2
  for method in "$@"; do
    options="$options --search $method"
  done
  echo "== $name"
  # shellcheck disable=SC2086  # no option and no method holds a space
  .venv/bin/milr bench $prompts --out "out/results/$name" $options
}

sampled=best-of-n:sampled-text
greedy=best-of-n:greedy-text
cool=image_temperature=0.7
sampled_tuned=$sampled,$cool,guidance=1.5                # what tuning chose: most solved at 20 calls
greedy_tuned=$greedy,image_temperature=1.3,guidance=1.5
distinct=best-of-n:distinct
distinct_tuned=$distinct,text_ratio=0.6                  # of its 8 settings the most solved, then the fewest calls
repaired=milr:repaired,text_ratio=0.2,image_ratio=0.1    # the best of the 16 pairs of part ratios
development="--prompt-seed 921 --limit 120 --category riddle --category composition --category position
  --category attribute --category counting"

for part in ${*:-tuning main-2 right errs main second ablation milr diagnosis critics regularisers noise ratios trust}; do
  case $part in
  tuning) # the same effort for each of the four: the default and seven others
    bench tuning-best-of-n "$development" \
      $sampled $sampled,$cool $sampled,image_temperature=0.85 $sampled,text_temperature=0.7 \
      $sampled,text_temperature=1.3 $sampled,guidance=1.0 $sampled,guidance=1.5 $sampled_tuned \
      $greedy $greedy,$cool $greedy,image_temperature=0.85 $greedy,image_temperature=1.3 \
      $greedy,guidance=1.0 $greedy,guidance=1.5 $greedy,$cool,guidance=1.5 $greedy_tuned
    bench tuning-repair "$development" \
      repair repair,again=0.1 repair,$cool repair,image_temperature=0.85 repair,text_temperature=0.7 \
      repair,text_temperature=1.3 repair,guidance=1.0 repair,guidance=1.5
    bench tuning-distinct "$development" \
      $distinct $distinct,text_ratio=0.4 $distinct,text_ratio=0.6 $distinct,text_ratio=1 \
      $distinct,$cool,guidance=1.5 $distinct,text_ratio=0.4,$cool,guidance=1.5 \
      $distinct,text_ratio=0.6,$cool,guidance=1.5 $distinct,text_ratio=1,$cool,guidance=1.5
    ;;
  main-2) # the headline: prompts whose meanings were never met, the strongest rivals, once
    prompts=scenes-2
    bench main-2 "--seeds 2 --baseline $sampled_tuned" $sampled_tuned repair $distinct_tuned $repaired
    prompts=scenes
    ;;
  right) # the same with the paper's oracle, 0 or 1, which says nothing of what is missing
    prompts=scenes-2
    bench right "--reward scene-right --baseline $sampled_tuned" \
      $sampled_tuned repair $distinct_tuned
    prompts=scenes
    ;;
  errs) # critics that err, on prompts that stand in no other report
    prompts=scenes-2
    bench lite-2 "--reward scene-lite --held-out scene --baseline $sampled" $sampled repair $distinct_tuned
    bench self-2 "--limit 300 --reward self --held-out scene --baseline $sampled" $sampled repair $distinct_tuned
    prompts=scenes
    ;;
  main) # the bar: both best-of-N as tuned, the stronger one also untuned; repair untuned
    bench main "--prompt-seed 31001 --limit 600 --seeds 2 --baseline $sampled_tuned" \
      $sampled_tuned repair $sampled $greedy_tuned
    ;;
  second) # development once more: repair with cooler pictures; then both tuned on fresh prompts
    bench tuning-second "--prompt-seed 922 --limit 120 --category riddle --category composition --category position
      --category attribute --category counting --baseline $sampled_tuned" \
      $sampled_tuned repair repair,$cool repair,$cool,guidance=1.5 repair,$cool,text_temperature=0.7 \
      repair,$cool,again=0.1
    bench main-second "--prompt-seed 31011 --limit 600 --seeds 2 --baseline $sampled_tuned" \
      $sampled_tuned repair repair,$cool
    ;;
  ablation)
    bench ablation "--prompt-seed 31002 --limit 300 --baseline repair" \
      repair repair,text_ratio=0 repair,image_ratio=0 repair,again=0 repair,doubt=0 repair,kappa=0 repair,decay=1 \
      repair,use_places=false repair,remember=false repair,rank=random $sampled
    ;;
  milr) # the published method, each change alone, then together
    bench milr "--prompt-seed 31003 --limit 300 --baseline $sampled" \
      $sampled milr:paper milr:paper,reward_offset=-1 milr:paper,baseline=mean milr:paper,text_prefix=sampled \
      milr:paper,text_rest=sampled milr:official milr:repaired
    ;;
  diagnosis) # wrong readings and wrong drawings before and after, moves, walks of the latents
    mkdir -p out/results
    for search in repair milr:paper milr:repaired; do
      echo "== diagnosis of $search"
      .venv/bin/python -m milr.reports.diagnose $search --prompts 300 --seed 31006 \
        --out "out/results/diagnosis-${search#*:}.json"
    done
    ;;
  critics) # imperfect ones, judged by the oracle
    for reward in scene-noisy scene-blind scene-lite self; do
      case $reward in self) without= ;; *) without=repair,use_places=false ;; esac # P(yes) has no places
      bench "critic-$reward" "--prompt-seed 31004 --limit 300 --reward $reward --held-out scene --baseline $sampled" \
        $sampled repair $without
    done
    ;;
  regularisers) # which draft to return where the critic is one number: alone, and together as by default
    bench regularisers "--prompt-seed 31007 --limit 100 --reward self --held-out scene --baseline $sampled" \
      $sampled $sampled,shrink=1 repair,caution=0,shrink=0 repair,caution=0.5,shrink=0 repair,caution=0,shrink=0.5 \
      repair,caution=0,shrink=1 repair
    ;;
  noise) # a critic that knows nothing
    bench noise "--prompt-seed 31005 --limit 100 --reward noise --held-out scene --baseline single" \
      single $sampled milr:paper milr:official repair
    ;;
  ratios) # lambda_t x lambda_v; then shares of the entropy, so that each prompt has ratios of its own
    for search in milr:repaired repair; do
      methods=
      for text in 0.1 0.2 0.4 1; do
        for image in 0.02 0.1 0.4 1; do
          methods="$methods $search,text_ratio=$text,image_ratio=$image"
        done
      done
      # shellcheck disable=SC2086
      bench "ratios-${search%%:*}" "--prompt-seed 941 --limit 200" $methods
    done
    fixed=milr:repaired,text_ratio=0.2,image_ratio=0.1
    entropy=milr:repaired,ratio_of=entropy
    bench ratios-entropy "--prompt-seed 941 --limit 200 --baseline $fixed" $fixed \
      $entropy,text_ratio=0.3,image_ratio=0.05 $entropy,text_ratio=0.3,image_ratio=0.2 \
      $entropy,text_ratio=0.6,image_ratio=0.05 $entropy,text_ratio=0.6,image_ratio=0.2 \
      $entropy,text_ratio=0.9,image_ratio=0.05 repair
    ;;
  trust) # which critic comes closest to the oracle: as judges of 2,000 drafts, and as rewards
    parts=vqa-score,model=backbone,parts=yes
    mkdir -p out/results
    test -e out/results/calibration.json || .venv/bin/milr critic calibrate self learned "$parts" scene-lite \
      "mix:0.5*self+0.5*scene-lite" "mix:0.5*learned+0.5*scene-lite" noise \
      --prompt-seed 31032 --limit 500 --drafts 4 --out out/results/calibration.json
    trust() { # NAME REWARD
      bench "trust-$1" "--prompt-seed 31031 --limit 150 --reward $2 --baseline $sampled $3" $sampled repair
    }
    trust scene scene ""
    trust scene-lite scene-lite "--held-out scene"
    trust learned learned "--held-out scene"
    trust mix-learned "mix:0.5*learned+0.5*scene-lite" "--held-out scene"
    trust self self "--held-out scene"
    trust mix-self "mix:0.5*self+0.5*scene-lite" "--held-out scene"
    trust parts "$parts" "--held-out scene"
    ;;
  width) # several drafts a round, one prompt at a time: success against calls, and against the seconds that a user waits
    # Prompts of a seed that no command or report used before. Not yet in docs/results.md, so not among all parts.
    bench width "--prompt-seed 31101 --limit 600 --batch 1 --baseline w1" \
      w1=repair,width=1 w2=repair,width=2 w4=repair,width=4 w8=repair,width=8 w16=repair,width=16
    bench width-best-of-n "--prompt-seed 31101 --limit 600 --batch 1 --baseline w1" \
      w1=$sampled_tuned,width=1 w2=$sampled_tuned,width=2 w4=$sampled_tuned,width=4 w8=$sampled_tuned,width=8 \
      w16=$sampled_tuned,width=16
    ;;
  *)
    echo "unknown part: $part; there are tuning main-2 right errs main second ablation milr diagnosis critics regularisers noise ratios trust width" >&2
    exit 2
    ;;
  esac
done
