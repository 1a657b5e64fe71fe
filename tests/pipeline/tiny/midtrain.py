from tests.pipeline.tiny import run

if __name__ == "__main__":
    run("midtrain")
