# Palimpsest: what a multimodal model forgets when it is taught one task after another.
#
#   snakemake --profile profiles/local                        the demo, on this machine
#   snakemake --profile profiles/slurm --config study=coin    a study, on a cluster; with -n: what would run
#
# A study is a file of config/, which `--configfile` names as well; where it runs the profile says.
from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


# Used only with `--sdm apptainer`; envs/palimpsest.def builds it.
container: "palimpsest.sif"


include: "rules/common.smk"
include: "rules/download.smk"  # what publishers released
include: "rules/data.smk"  # publisher's files -> Arrow shards
include: "rules/models.smk"  # published parts -> weights
include: "rules/similarity.smk"  # model x task -> embeddings
include: "rules/train.smk"  # one job a stage, each starting from its parent's
include: "rules/evaluate.smk"  # stage x task -> predictions -> scores
include: "rules/judge.smk"  # predictions -> scores by a language model
include: "rules/report.smk"  # scores -> tables, figures, page
include: "rules/quick.smk"  # what Snakemake is spared


onstart:
    from palimpsest.plan import describe  # here, as no job needs it

    print(describe(STUDY), flush=True)
    LEFT.take_over(RESULTS)
    quicken(workflow.scheduler)


onerror:
    shell("echo; palimpsest status {STUDY.name} --failed; echo")


localrules:
    all,
    chance,  # a second each, and no model: no job of a cluster's is worth it
    score,
    data_all,
    embed_all,
    train_all,
    evaluate_all,
    report_all,


rule all:
    default_target: True
    input:
        rules.train_all.input,  # so that a stage that was removed is trained anew
        rules.report_all.input,
    message:
        f"finished: {REPORT}/index.html"
