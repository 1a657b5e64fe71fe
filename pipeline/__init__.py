"""The torch-free half of priorlab: plan, launch, resume and compare stages."""
