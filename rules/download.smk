# One download each: what config/downloads/<name>.yaml describes. A broken one goes on where it was.
rule download:
    output:
        "results/downloads/{download}/download.json",
    log:
        "results/logs/downloads/{download}.log",
    localrule: True  # compute nodes of a cluster often have no network
    params:
        recipe=lambda wildcards: load(Download, wildcards.download).recipe,
    message:
        "download {wildcards.download}; progress in {log}"
    shell:
        "palimpsest download {wildcards.download} > {log} 2>&1"
